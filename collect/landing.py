"""`settle`: makes landing/<day> agree with the ledger, in the form that extract reads. Safe to repeat after a kill."""

import csv
import io
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from collect import ledger
from collect.ledger import Recording
from collect.place import AREA, door, move, names, put, remove
from spira_train import table
from spira_train.landing import METADATA
from spira_train.outcome import BadInput
from spira_train.store import Lake

COLUMNS = ("file_path", "class", "sexo", "idade", "subject", "site", "device", "cause", "spo2")
SOMETIMES = ("nivel_falta_de_ar", "split")  # written where a recording of the day has them
_CLASS = {"control": "0", "patient": "1"}
_PARTIAL = re.compile(r"\.[0-9a-z.-]+\.[0-9a-f]{12}\.partial")
Rows = list[dict[str, str]]


@dataclass(frozen=True)
class _Delivered:
    """metadata.csv as it is: the rows and columns of others, and whether there are rows of ours."""

    foreign: Rows
    header: list[str]
    ours: bool
    content: bytes


def settle(lake: Lake, day: str) -> dict[str, int]:
    """Move what is to be trained on to landing, and what is not away from it; then write metadata.csv.

    What others delivered for that day stays as it is. Returns counts: landed, waiting, withdrawn, missing (files that
    somebody deleted). Raises `BadInput` where metadata.csv of others cannot be read; all recordings have moved
    by then.
    """
    with door(lake):
        return settle_inside(lake, day)


def settle_inside(lake: Lake, day: str) -> dict[str, int]:
    """`settle` for a caller that holds the door."""
    found = ledger.recordings(lake, day)
    if not found:
        return _counts([], set())
    landed, waiting = set(names(lake, "landing", day)), set(names(lake, AREA, day, "waiting"))
    missing = set()
    for one in found.values():
        here, there = ("landing", day, one.file), (AREA, day, "waiting", one.file)
        match one.state:
            case "landed" if one.file in landed:
                pass
            case "landed" if one.file in waiting:
                move(lake, there, here)
            case "waiting" if one.file in landed:
                move(lake, here, there)
            case "withdrawn" if one.file in landed:
                remove(lake, *here)
            case "landed" | "waiting" if one.file not in waiting:
                missing.add(one.id)
    keep = {one.file for one in found.values() if one.state == "waiting"}
    for name in waiting - keep:  # landed, withdrawn, or never got its event: who holds the door knows nobody writes it
        remove(lake, AREA, day, "waiting", name)
    for folder in (("landing", day), (AREA, day, "events")):
        sweep(lake, *folder)
    rows = [_row(one) for one in found.values() if one.state == "landed" and one.id not in missing]
    _write(lake, day, _delivered(lake, day, {one.file for one in found.values()}), rows)
    return _counts(found.values(), missing)


def sweep(lake: Lake, *folder: str) -> None:
    """Remove what a kill left half-written in a folder; who holds the door knows that nobody is writing it."""
    for name in filter(_PARTIAL.fullmatch, names(lake, *folder)):
        remove(lake, *folder, name)


def _counts(found: Iterable[Recording], missing: set[str]) -> dict[str, int]:
    states = [one.state for one in found if one.id not in missing]
    return {state: states.count(state) for state in ("landed", "waiting", "withdrawn")} | {"missing": len(missing)}


def _row(one: Recording) -> dict[str, str]:
    facts = one.facts
    cells = {
        "file_path": one.file,
        "class": _CLASS[str(one.label)],
        "sexo": facts.get("sex"),
        "idade": facts.get("age"),
        "nivel_falta_de_ar": facts.get("dyspnoea"),
        "subject": one.subject,
    }
    cells |= {name: facts.get(name) for name in ("site", "device", "cause", "spo2", "split")}
    return {name: _text(value) for name, value in cells.items()}


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _delivered(lake: Lake, day: str, ours: set[str]) -> _Delivered:
    name = f"landing/{day}/{METADATA}"
    if not lake.exists("landing", day, METADATA):
        return _Delivered([], [], False, b"")
    content = lake.read("landing", day, METADATA)
    lines = table.read(content, name)
    if not lines:
        return _Delivered([], [], False, content)
    header = [re.sub(r"[\s-]+", "_", cell.lower()) for cell in lines[0][1]]
    rows = [row for _, row in table.by_column(lines[1:], header) if row is not None]
    if "file_path" not in header or len(rows) < len(lines) - 1:
        raise BadInput(f"{name}: was delivered with mistakes, so nothing can be added to it; correct it first")
    foreign = [row for row in rows if posixpath.normpath(row["file_path"]) not in ours]
    return _Delivered(foreign, header if foreign else [], len(foreign) < len(rows), content)


def _write(lake: Lake, day: str, before: _Delivered, rows: Rows) -> None:
    if not rows and not before.foreign:
        if before.ours:
            remove(lake, "landing", day, METADATA)
        if not names(lake, "landing", day):
            remove(lake, "landing", day)  # a day without recordings is no partition: the newest trains for all
        return
    if not rows and not before.ours:
        return
    columns = [*before.header, *(name for name in COLUMNS if name not in before.header)]
    columns += [name for name in SOMETIMES if name not in columns and any(row[name] for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*before.foreign, *rows])
    content = text.getvalue().encode()
    if content != before.content:
        put(lake, content, "landing", day, METADATA)
