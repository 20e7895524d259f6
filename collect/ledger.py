"""The ledger: every event of the collection is a small file that never changes, and all else follows from them.

collection/<day>/events/<time_ns>-<kind>-<id>.json; kinds: received, labelled, withdrawn (id: the subject's pseudonym).
`recordings` says what they add up to; `settle` (collect/landing.py) makes the landing area agree.
"""

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal

from collect.place import AREA, is_local, names, put
from spira_train.store import Lake

State = Literal["landed", "waiting", "withdrawn"]
RECEIVED, LABELLED, WITHDRAWN = "received", "labelled", "withdrawn"
_EVENT = re.compile(r"(\d{19,20})-(received|labelled|withdrawn)-([0-9a-f]{16,32})\.json")
_TICK_NS = 2_000_000_000  # a folder's time stamp cannot tell two changes apart that are closer than this


class Declined(Exception):
    """The ledger says no: `reason` in a word (unknown, other_subject, withdrawn), `detail` in a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Recording:
    """What the events of one recording add up to. facts: as `Facts`, without consent and subject."""

    id: str
    day: str
    digest: str  # SHA-256 of the bytes as they came
    file: str  # <digest>.<extension>
    subject: str  # pseudonym
    at: str  # ISO 8601
    facts: Mapping[str, Any]
    labels: tuple[Mapping[str, Any], ...]  # every one that was given later: label, who, why, time
    withdrawn: bool

    @property
    def label(self) -> str | None:
        """The last one that was given."""
        return str(self.labels[-1]["label"]) if self.labels else self.facts.get("label")

    @property
    def state(self) -> State:
        """landed: with label and consent, for training. waiting: one of them is missing."""
        if self.withdrawn:
            return "withdrawn"
        return "landed" if self.label and self.facts.get("consent_training") else "waiting"


@dataclass(frozen=True)
class _Listing:
    """The names of a day's events, by time."""

    names: tuple[str, ...]
    received: Mapping[str, str]  # id -> name of its first event


def days(lake: Lake) -> list[str]:
    """The days on which something was collected, oldest first."""
    return lake.partitions(AREA)


def today() -> str:
    """The partition of what is received now: the day in UTC."""
    return datetime.now(UTC).date().isoformat()


def find(lake: Lake, id: str) -> Recording | None:
    """A recording by its id, on whatever day it came."""
    for day in reversed(days(lake)):
        if id in listing(lake, day).received:
            return recordings(lake, day)[id]
    return None


def recordings(lake: Lake, day: str) -> dict[str, Recording]:
    """What was received on a day, by id, in the order in which it came."""
    listed, gone = listing(lake, day), withdrawn(lake)
    labels: dict[str, list[Mapping[str, Any]]] = {}
    for name in listed.names:
        if f"-{LABELLED}-" in name:
            found = event(lake, day, name)
            labels.setdefault(found["id"], []).append(found)
    known = {}
    for id, name in listed.received.items():
        came = event(lake, day, name)
        own = {field: came[field] for field in ("id", "digest", "file", "subject", "facts")}
        known[id] = Recording(
            day=day, at=came["time"], labels=tuple(labels.get(id, ())), withdrawn=came["subject"] in gone, **own
        )
    return known


def withdrawn(lake: Lake) -> set[str]:
    """The pseudonyms of whoever withdrew."""
    return {name.removesuffix(".json") for name in names(lake, AREA, "withdrawn") if re.fullmatch(r"\w+\.json", name)}


def append(lake: Lake, day: str, kind: str, about: str, **facts: Any) -> dict[str, Any]:
    """Write an event; it comes after all others of its day, whatever the clock says. The caller holds the door."""
    listed = listing(lake, day).names
    at = max(time.time_ns(), int(listed[-1].partition("-")[0]) + 1 if listed else 0)
    found = {"kind": kind, "time": datetime.fromtimestamp(at / 1e9, UTC).isoformat(), **facts}
    put(
        lake,
        json.dumps(found, indent=1, sort_keys=True, allow_nan=False).encode(),
        *_events(day),
        f"{at}-{kind}-{about}.json",
    )
    return found


def listing(lake: Lake, day: str) -> _Listing:
    """The events of a day by name alone; a day that has not changed is not listed again."""
    if not is_local(lake):
        return _list(lake, day)
    try:
        changed = os.stat(lake.path(*_events(day))).st_mtime_ns  # noqa: PTH116
    except FileNotFoundError:
        return _Listing((), {})
    if changed > time.time_ns() - _TICK_NS:
        return _list(lake, day)
    return _list_unchanged(lake, day, changed)


@lru_cache(maxsize=100_000)
def event(lake: Lake, day: str, name: str) -> Mapping[str, Any]:
    """An event; it never changes, so it is read once."""
    return MappingProxyType(json.loads(lake.read(*_events(day), name)))


@lru_cache(maxsize=10_000)
def _list_unchanged(lake: Lake, day: str, changed: int) -> _Listing:
    return _list(lake, day)


def _list(lake: Lake, day: str) -> _Listing:
    found = sorted(
        (match for name in names(lake, *_events(day)) if (match := _EVENT.fullmatch(name))), key=lambda m: int(m[1])
    )
    received: dict[str, str] = {}
    for match in found:
        if match[2] == RECEIVED:
            received.setdefault(match[3], match[0])
    return _Listing(tuple(match[0] for match in found), received)


def _events(day: str) -> tuple[str, str, str]:
    return AREA, day, "events"
