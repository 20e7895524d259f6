"""Days of the collection that are over, for training; and versions that were trained on what was withdrawn since.

The ledger itself is the collection's (collect/ledger.py). Here only three things of it are known: collection/<day>/ is
a day that it took part in, closed.json in it is written here, collection/withdrawn/*.json says who has left.
"""

import io
import json
from datetime import UTC, datetime
from typing import Any

import pyarrow.parquet as pq

from spira_train import landing, manifest
from spira_train.outcome import NothingToDo, TryAgain
from spira_train.progress import say
from spira_train.registry import Registry
from spira_train.store import CLOSED, Lake, digest_json, put

AREA, MARKED = "collection", "marked.json"


def run(*, lake: Lake, mlflow: str | None, by: str = "", today: str = "") -> dict[str, Any]:
    """Close what is over, mark what was trained on the withdrawn, remove what still sounds of them.

    by: who asks, such as a DAG run; a day that it has closed before is told once more, so that a kill between closing
    and telling loses nothing. Returns {days, newest: of all complete days, marked: version -> recordings}. Raises
    `NothingToDo` where no day was closed.
    """
    sources = _withdrawn(lake)
    removed = forget(lake, sources)
    marked: dict[str, int] = {}
    if mlflow and sources:
        try:
            marked = mark(lake, Registry(mlflow), sources)
        except TryAgain as error:  # closing must not wait for it: the next run marks
            say(f"collected: {error}")
    closed = close(lake, by, today or datetime.now(UTC).date().isoformat())
    if not closed:
        raise NothingToDo(
            "no day of the collection is over that was not closed before"
            + (f"; marked {', '.join(marked)} as trained on withdrawn recordings" if marked else "")
        )
    return {"days": closed, "newest": max(lake.landed(), default=""), "marked": marked, "forgotten": removed}


def close(lake: Lake, by: str, today: str) -> list[str]:
    """Days before `today` that landed, or changed, since they were closed; oldest first. They are closed by then."""
    told = []
    for day in (day for day in lake.partitions(AREA) if day < today):
        before = _read(lake, AREA, day, CLOSED)
        stamp = _stamp(lake, day)
        if before.get("stamp") != stamp:
            try:
                digest = landing.landing_digest(lake, day)[0] if stamp else ""
            except FileNotFoundError:  # a recording was moved meanwhile
                raise TryAgain(f"landing/{day}: is being written; try again in a moment") from None
            now = {"digest": digest, "stamp": stamp, "at": datetime.now(UTC).isoformat(timespec="seconds"), "by": by}
            changed = digest != before.get("digest", "")
            _write(lake, now if changed else before | {"stamp": stamp}, AREA, day, CLOSED)
            if changed:
                told.append(day)
                continue
        if by and before.get("by") == by and before.get("digest"):
            told.append(day)
    return told


def mark(lake: Lake, registry: Registry, sources: set[str]) -> dict[str, int]:
    """Tag every version that was trained on withdrawn recordings with how many; {version: how many} that are new.

    A version is looked at once for a set of withdrawals: what it was trained on never changes.
    """
    state = digest_json(sorted(sources))
    seen = _read(lake, AREA, MARKED)
    done = set(seen.get("versions", ())) if seen.get("withdrawn") == state else set()
    marked = {}
    versions = registry.versions()
    for number in versions.keys() - done:
        tags = versions[number].tags
        count = len(sources & set((registry.recordings(number) or {}).values()))
        if count and tags.get("withdrawn") != str(count):
            registry.tag(number, "withdrawn", str(count))
            marked[tags.get("version", number)] = count
            say(f"collected: {tags.get('version', number)} was trained on {count} recordings that were withdrawn since")
    if versions.keys() - done:
        _write(lake, {"withdrawn": state, "versions": sorted(versions)}, AREA, MARKED)
    return marked


def forget(lake: Lake, sources: set[str]) -> list[str]:
    """Remove audio and features of days in which a withdrawn recording still sounds: an extract that was at work while
    its subject withdrew may have published it afterwards. Returns the days."""
    removed = []
    days = {day for note in _notes(lake) for day in note["days"]}
    for day in sorted(days):
        if not lake.exists("audio", day, manifest.NAME):
            continue
        table = pq.read_table(io.BytesIO(lake.read("audio", day, manifest.NAME)), columns=["source_digest"])
        if sources & set(table.column("source_digest").to_pylist()):
            for area in ("audio", "features"):
                if lake.exists(area, day):
                    lake.fs.rm(lake.path(area, day), recursive=True)
            removed.append(day)
    return removed


def _notes(lake: Lake) -> list[dict[str, Any]]:
    if not lake.exists(AREA, "withdrawn"):
        return []
    return [_read(lake, AREA, "withdrawn", name) for name in lake.files(AREA, "withdrawn")]


def _withdrawn(lake: Lake) -> set[str]:
    """SHA-256 of the delivered bytes of every withdrawn recording."""
    return {source for note in _notes(lake) for source in note["sources"]}


def _stamp(lake: Lake, day: str) -> str:
    """Changes when landing/<day> does, without a look at the sound; empty where nothing landed."""
    sizes = landing.sizes(lake, day) if lake.exists("landing", day) else {}
    if landing.METADATA not in sizes:
        return ""
    return digest_json([sizes, lake.read("landing", day, landing.METADATA).decode(errors="replace")])


def _read(lake: Lake, *parts: str) -> dict[str, Any]:
    try:
        return dict(json.loads(lake.read(*parts)))
    except FileNotFoundError:
        return {}


def _write(lake: Lake, value: dict[str, Any], *parts: str) -> None:
    put(lake.fs, lake.path(*parts), json.dumps(value, indent=1, sort_keys=True).encode())
