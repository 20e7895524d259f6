"""From a recording's first byte to a request for the model: what is accepted, where it grows, when it is complete."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from starlette.requests import ClientDisconnect

from access.database import now
from access.web import Person
from collect import facts as rules
from collect import ledger
from collect.pseudonym import pseudonym
from serve.app import metrics, recordings
from serve.app.records import PROCESSING, UPLOADING, Inference, unfinished
from serve.app.state import App
from serve.gateway.problem import Problem
from spira_train.store import Lake

ID = r"^[0-9a-f]{32}$"
CLOSE = {"Connection": "close"}  # what is left of the body would be taken for the next request


class About(BaseModel):
    """What is known of the recording; all of it may be left out."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    subject: str | None = Field(None, max_length=200, description="whose voice; only its pseudonym is kept")
    sex: Literal["M", "F"] | None = None
    age: int | None = Field(None, ge=0, le=120)
    site: str | None = Field(None, max_length=100)
    device: str | None = Field(None, max_length=100)
    dyspnoea: int | None = Field(None, ge=0, le=5)
    spo2: float | None = Field(None, ge=0, le=100)
    sentence: rules.Sentence | None = None
    consent_training: bool = Field(False, description="may it be trained on, once the diagnosis is known")


class New(BaseModel):
    """An upload that is about to come."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    id: str = Field(pattern=ID, description="chosen by the client, once for a recording: 32 random hex digits")
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    language: Literal["pt", "en"] = "pt"
    facts: About = About()


def finish(app: App, row: Inference, file: Path) -> Inference:
    """A complete upload becomes a request: the recording is in its place first, then the row says so.

    Raises `Problem` (422) where it is not what was announced; it must then be sent from the start.
    """
    if recordings.digest(file) != row.sha256:
        file.unlink(missing_ok=True)
        raise Problem(422, "digest", "what arrived is not what was announced by its sha256; send it from the start")
    recordings.keep(app.settings.audio, row.audio, file)
    with app.write.begin() as session:
        current = session.get(Inference, row.id, with_for_update=True)
        if current is None:
            recordings.delete(app.settings.audio, row.audio)
            raise Problem(404, "unknown", f"{row.id} was withdrawn meanwhile")
        if current.state == UPLOADING:
            current.state = PROCESSING
            metrics.received.inc()
    file.unlink(missing_ok=True)
    recordings.spool(app.settings.home, row.id).unlink(missing_ok=True)
    app.wake()
    return current


def mend(app: App) -> None:
    """Finish what a kill left between the last byte and the request; forget what was begun and never finished."""
    with app.read() as session:
        rows = session.scalars(select(Inference).where(Inference.state == UPLOADING)).all()
    for row in rows:
        file = recordings.spool(app.settings.home, row.id)
        if row.created_at < now() - timedelta(hours=app.settings.upload_hours):
            _forget(app, row, file)
        elif recordings.offset(file) == row.bytes and row.id not in app.writers:
            try:
                finish(app, row, file)
            except Problem:
                continue  # the client will be told when it asks


def _forget(app: App, row: Inference, file: Path) -> None:
    with app.write.begin() as session:
        found = session.get(Inference, row.id, with_for_update=True)
        if found and found.state == UPLOADING:
            session.delete(found)
            file.unlink(missing_ok=True)
            recordings.delete(app.settings.audio, row.audio)


@contextmanager
def writing(app: App, key: str) -> Iterator[object]:
    """Whoever appends to an upload, until it is a request: a newer one takes it over, `mend` leaves it alone."""
    me = app.writers[key] = object()
    try:
        yield me
    finally:
        if app.writers.get(key) is me:
            del app.writers[key]


async def append(app: App, request: Request, key: str, file: Path, limit: int) -> None:
    """Append the body to `file`. A newer request for the same upload ends an older one, whose network broke."""
    me, start = app.writers[key], recordings.offset(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with file.open("ab") as stream:
            async with asyncio.timeout(app.settings.body_seconds):
                async for chunk in request.stream():
                    if app.writers.get(key) is not me:
                        raise Problem(409, "superseded", "a newer request goes on with this upload", headers=CLOSE)
                    if stream.tell() + len(chunk) > limit:
                        stream.truncate(start)
                        raise Problem(413, "too_large", f"this recording may have {limit} bytes", headers=CLOSE)
                    stream.write(chunk)
                    stream.flush()
    except TimeoutError:
        wait = app.settings.body_seconds
        raise Problem(408, "too_slow", f"the body did not arrive within {wait:g} s; go on", headers=CLOSE) from None
    except ClientDisconnect:  # nobody is left to read this
        raise Problem(400, "cut_off", "the connection ended before the body did", headers=CLOSE) from None


def fresh(app: App, person: Person, new: New) -> Inference:
    """A row for `new`; raises `Problem`: 409 for a subject who withdrew, 422 for what names a person."""
    facts = new.facts.model_dump(exclude_none=True)
    subject = facts.pop("subject", None)
    if facts["consent_training"] and not subject:
        raise Problem(
            422, "field", "facts.subject: is missing; without it a recording for training could not be withdrawn"
        )
    try:
        rules.read({"consent": True, "subject": "nobody"} | facts | ({"subject": subject} if subject else {}))
    except rules.Wrong as wrong:
        raise Problem(422, wrong.reason, f"facts.{wrong}") from None
    whose = pseudonym(app.key, subject) if subject else None
    if whose and whose in ledger.withdrawn(Lake(app.settings.lake)):
        raise Problem(409, "withdrawn", "this subject has withdrawn; nothing of theirs is taken")
    at = now()
    return Inference(
        id=new.id,
        created_at=at,
        account=person.name,
        state=UPLOADING,
        sha256=new.sha256,
        bytes=new.bytes,
        audio=f"{at.date().isoformat()}/{new.id}",
        language=new.language,
        subject=whose,
        facts=facts,
        round=0,
        attempts=0,
    )


def create(app: App, row: Inference) -> bool:
    """Enter the row; False where its id is known."""
    try:
        with app.write.begin() as session:
            if session.get(Inference, row.id):
                return False
            if unfinished(session, row.account) >= app.settings.uploads:
                raise Problem(
                    429, "uploads", "too many of your uploads are unfinished; finish some", headers={"Retry-After": "5"}
                )
            session.add(row)
    except IntegrityError:  # PostgreSQL: somebody was quicker
        return False
    return True


def known(app: App, person: Person, id: str, sha256: str, size: int) -> Inference:
    """The row with this id; raises `Problem` (409) where it is another recording's, or somebody else's."""
    with app.read() as session:
        row = session.get(Inference, id)
    if row is None or (row.account, row.sha256, row.bytes) != (person.name, sha256, size):
        raise Problem(409, "taken", f"{id}: another recording has this id; choose a new one")
    return row
