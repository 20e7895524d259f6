"""Taking in: a recording, a label that comes later, a subject who withdraws.

Each is one file that appears whole (the event, or the note of a withdrawal): before it nothing has happened, after it
everything that must follow is done again until it is done, by `recover` after a kill.
"""

import json
import logging
import re
from datetime import UTC, date, datetime

from pydantic import BaseModel, ConfigDict, Field

from collect import ledger
from collect.facts import Facts, Label, harmless
from collect.hearing import listen
from collect.landing import settle_inside, sweep
from collect.ledger import LABELLED, RECEIVED, WITHDRAWN, Declined, Recording, State
from collect.place import AREA, door, put, remove
from collect.pseudonym import pseudonym
from spira_train.outcome import BadInput
from spira_train.store import Lake, digest_bytes

log = logging.getLogger("spira.collect")
_PSEUDONYM = re.compile(r"[0-9a-f]{16}")


class Receipt(BaseModel):
    """What was kept. landed: it will be trained on; waiting: its label, or the consent, is missing."""

    model_config = ConfigDict(frozen=True)

    id: str
    day: str
    digest: str
    state: State
    again: bool = Field(description="it had come before: nothing was changed")


class Left(BaseModel):
    """What a withdrawal took away. recordings: 0 where the subject was not known; then look at the spelling."""

    subject: str = Field(description="pseudonym")
    days: list[str]
    recordings: int


def receive(
    lake: Lake, key: bytes | None, recording: bytes, facts: Facts, who: str, *, day: str | None = None
) -> Receipt:
    """Take a recording in; the caller calls `settle` for its day afterwards.

    key: makes the subject a pseudonym; None where it is one already. day: of the partition; None: today.
    Raises `Unusable` where nothing can be heard on it, `Declined` where the same sound came for another subject, or
    where the subject has withdrawn.
    """
    heard, digest = listen(recording), digest_bytes(recording)
    subject, id = facts.subject if key is None else pseudonym(key, facts.subject), digest[:32]
    if not _PSEUDONYM.fullmatch(subject):
        raise Declined("subject", "the subject is not a pseudonym")
    with door(lake):
        if subject in ledger.withdrawn(lake):
            raise Declined("withdrawn", "this subject has withdrawn; nothing of theirs is taken any more")
        known = ledger.find(lake, id)
        if known and known.subject != subject:
            raise Declined("other_subject", "the same recording came for another subject; one of the two is wrong")
        if known:
            return _receipt(known, again=True)
        day = day or ledger.today()
        file = f"{digest}.{heard.extension}"
        put(lake, recording, AREA, day, "waiting", file)
        own = facts.model_dump(mode="json", exclude={"subject", "consent"}, exclude_none=True)
        said = {"id": id, "digest": digest, "file": file, "bytes": len(recording), "seconds": round(heard.seconds, 3)}
        ledger.append(lake, day, RECEIVED, id, **said, subject=subject, facts=own, who=who)
        return _receipt(ledger.recordings(lake, day)[id], again=False)


def label(lake: Lake, id: str, value: Label, who: str, why: str) -> Receipt:
    """Say, or correct, what a recording is; the last one wins, every one is kept. The caller settles its day.

    Raises `Declined` where there is no such recording or its subject has withdrawn, `Wrong` where `why` names a person.
    """
    why = harmless("why", why)
    with door(lake):
        known = ledger.find(lake, id)
        if known is None:
            raise Declined("unknown", "there is no recording with this id")
        if known.withdrawn:
            raise Declined("withdrawn", "the subject of this recording has withdrawn")
        last = known.labels[-1] if known.labels else {}
        if (last.get("label"), last.get("who"), last.get("why")) == (value, who, why):
            return _receipt(known, again=True)
        ledger.append(lake, known.day, LABELLED, id, id=id, label=value, who=who, why=why)
        return _receipt(ledger.recordings(lake, known.day)[id], again=False)


def withdraw(lake: Lake, key: bytes, subject: str, who: str) -> Left:
    """Let a subject's recordings leave the lake, and all that was derived of their days; refuse later ones.

    subject: as it was given with the recordings, or its pseudonym. What stays is the ledger (ids and pseudonyms) and
    collection/withdrawn/<pseudonym>.json.
    """
    with door(lake):
        given = [one for day in ledger.days(lake) for one in ledger.recordings(lake, day).values()]
        known = _PSEUDONYM.fullmatch(subject.strip()) and any(one.subject == subject.strip() for one in given)
        name = subject.strip() if known else pseudonym(key, subject)
        mine = [one for one in given if one.subject == name]
        if name not in ledger.withdrawn(lake):
            note = {
                "subject": name,
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "who": who,
                "days": sorted({one.day for one in mine}),
                "sources": sorted(one.digest for one in mine),
            }
            put(lake, json.dumps(note, indent=1).encode(), AREA, "withdrawn", f"{name}.json")
        _leave(lake, name)
    return Left(subject=name, days=sorted({one.day for one in mine}), recordings=len(mine))


def recover(lake: Lake) -> None:
    """Finish whatever a kill cut off. A service does so when it starts."""
    with door(lake):
        sweep(lake, AREA, "withdrawn")
        for name in sorted(ledger.withdrawn(lake)):
            _leave(lake, name)
        for day in ledger.days(lake):
            _settle(lake, day)


def _leave(lake: Lake, name: str) -> None:
    """Empty the days of a withdrawn subject; the event in a day's ledger says that it is done there."""
    note = json.loads(lake.read(AREA, "withdrawn", f"{name}.json"))
    for day in note["days"]:
        if any(event.endswith(f"-{WITHDRAWN}-{name}.json") for event in ledger.listing(lake, day).names):
            continue
        _settle(lake, day)
        for area in ("audio", "features"):  # caches: the next run makes them anew, without the subject
            remove(lake, area, day)
        ledger.append(lake, day, WITHDRAWN, name, subject=name, who=note["who"])


def _settle(lake: Lake, day: str) -> None:
    try:
        settle_inside(lake, day)
    except BadInput as error:  # others delivered an unreadable metadata.csv: the recordings have moved all the same
        log.error("%s", error)


def _receipt(one: Recording, again: bool) -> Receipt:
    return Receipt(id=one.id, day=one.day, digest=one.digest, state=one.state, again=again)


def valid_day(text: str) -> str:
    """A collection day, YYYY-MM-DD, not in the future; raises `ValueError`."""
    day = date.fromisoformat(text).isoformat()
    if day != text or day > ledger.today():
        raise ValueError(f"{text}: not a day up to today, written YYYY-MM-DD")
    return day
