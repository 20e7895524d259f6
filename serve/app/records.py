"""What the app remembers: inferences, the labels that people entered later, and dead letters.

Only the app writes here.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, Field
from sqlalchemy import JSON, ForeignKey, Index, String, Text, func, or_, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from access.database import Base, Moment, now
from serve.gateway.problem import Problem

STATES = UPLOADING, PROCESSING, COMPLETED, ERROR = "uploading", "processing", "completed", "error"


class Inference(Base):
    """One recording and what became of it. id: chosen by the client, for ever. audio: its path below SPIRA_APP_AUDIO.

    round: how often an operator has sent it again. attempts: how often the gateway was asked in the last round.
    """

    __tablename__ = "inferences"
    __table_args__ = (
        Index(None, "account", "created_at"),
        Index(None, "state", "published_at"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(Moment)
    account: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(12))
    sha256: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int]
    audio: Mapped[str] = mapped_column(String(64))
    language: Mapped[str] = mapped_column(String(2))
    subject: Mapped[str | None] = mapped_column(String(64), index=True)
    facts: Mapped[dict[str, Any]] = mapped_column(JSON)
    round: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    published_at: Mapped[datetime | None] = mapped_column(Moment)
    completed_at: Mapped[datetime | None] = mapped_column(Moment)
    answer: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[str | None] = mapped_column(String(64))
    detail: Mapped[str | None] = mapped_column(Text)
    version: Mapped[str | None] = mapped_column(String(64), index=True)
    diagnosis: Mapped[str | None] = mapped_column(String(16))
    label: Mapped[str | None] = mapped_column(String(8))
    labelled_at: Mapped[datetime | None] = mapped_column(Moment)
    labelled_by: Mapped[str | None] = mapped_column(String(64))
    audio_deleted_at: Mapped[datetime | None] = mapped_column(Moment)

    @property
    def day(self) -> str:
        """The UTC day on which it was begun: its partition in the lake."""
        return self.created_at.date().isoformat()


class Label(Base):
    """A later diagnosis; every one is kept, the last one counts. published_at: when `collect` was told."""

    __tablename__ = "labels"

    number: Mapped[int] = mapped_column(primary_key=True)
    inference_id: Mapped[str] = mapped_column(ForeignKey("inferences.id", ondelete="CASCADE"), index=True)
    label: Mapped[str] = mapped_column(String(8))
    why: Mapped[str] = mapped_column(Text)
    who: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime] = mapped_column(Moment)
    published_at: Mapped[datetime | None] = mapped_column(Moment)


class DeadLetter(Base):
    """A request that the model did not answer in all its tries. retried_at: when somebody sent it again."""

    __tablename__ = "dead_letters"

    number: Mapped[int] = mapped_column(primary_key=True)
    inference_id: Mapped[str] = mapped_column(ForeignKey("inferences.id", ondelete="CASCADE"), index=True)
    round: Mapped[int]
    tries: Mapped[int]
    error: Mapped[str] = mapped_column(String(64))
    detail: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(Moment)
    retried_at: Mapped[datetime | None] = mapped_column(Moment)
    retried_by: Mapped[str | None] = mapped_column(String(64))


class Result(BaseModel):
    """What a worker found, as it comes by message. dead: the model did not answer, `error` says why."""

    id: str
    round: int
    tries: int
    answer: dict[str, Any] | None = None
    error: str | None = Field(None, max_length=64)
    detail: str | None = None
    dead: bool = False


class Shown(BaseModel):
    """An inference as its owner sees it."""

    id: str
    state: Literal["uploading", "processing", "completed", "error"]
    created_at: datetime
    offset: int | None = Field(None, description="while it is uploaded: how many bytes have arrived")
    completed_at: datetime | None = None
    answer: dict[str, Any] | None = Field(None, description="the gateway's answer, with the windows")
    error: str | None = Field(None, description="the reason in a word, where the state is `error`")
    detail: str | None = None
    label: Literal["patient", "control"] | None = Field(None, description="the later diagnosis, where one was entered")
    labelled_at: datetime | None = None
    facts: dict[str, Any] | None = Field(None, description="what was said of the recording; never the subject")


def shown(row: Inference) -> Shown:
    """`row` without what stays inside."""
    return Shown(
        id=row.id,
        state=row.state,
        created_at=row.created_at,
        completed_at=row.completed_at,
        answer=row.answer,
        error=row.error,
        detail=row.detail,
        label=row.label,
        labelled_at=row.labelled_at,
        facts=row.facts,
    )


def mine(session: Session, id: str, account: str) -> Inference:
    """The account's inference; raises `Problem` (404) where there is none, or it is somebody else's."""
    row = session.get(Inference, id)
    if row is None or row.account != account:
        raise Problem(404, "unknown", f"no inference {id} of yours; it may have been withdrawn")
    return row


def latest(session: Session, account: str, limit: int) -> Sequence[Inference]:
    """The account's own, newest first."""
    asked = select(Inference).where(Inference.account == account).order_by(Inference.created_at.desc()).limit(limit)
    return session.scalars(asked).all()


def unfinished(session: Session, account: str) -> int:
    """How many uploads the account has begun and not finished."""
    asked = select(func.count()).where(Inference.account == account, Inference.state == UPLOADING)
    return session.scalar(asked) or 0


def due(session: Session, redrive_seconds: float, limit: int = 200) -> Sequence[Inference]:
    """Requests to publish: not yet published, or published long ago and still without an answer; oldest first."""
    long_ago = now() - timedelta(seconds=redrive_seconds)
    waits = or_(Inference.published_at.is_(None), Inference.published_at < long_ago)
    asked = select(Inference).where(Inference.state == PROCESSING, waits).order_by(Inference.created_at).limit(limit)
    return session.scalars(asked).all()


def apply(session: Session, result: Result) -> Inference | None:
    """Enter a result: the first one wins, any later one changes nothing (None).

    An error of an earlier round says nothing about this one; an answer is an answer whenever it was asked for.
    """
    answer = result.answer or {}
    waits = [Inference.id == result.id, Inference.state == PROCESSING]
    if result.answer is None:
        waits.append(Inference.round == result.round)
    changed = session.execute(
        update(Inference)
        .where(*waits)
        .values(
            state=ERROR if result.answer is None else COMPLETED,
            answer=result.answer,
            error="no_answer" if result.dead else result.error,
            detail=result.detail,
            attempts=result.tries,
            version=(answer.get("model") or {}).get("version"),
            diagnosis=answer.get("diagnosis"),
            completed_at=now(),
        )
    )
    if not changed.rowcount:  # type: ignore[attr-defined]
        return None
    if result.dead:
        session.add(
            DeadLetter(
                inference_id=result.id,
                round=result.round,
                tries=result.tries,
                error=result.error or "no_answer",
                detail=result.detail or "",
                at=now(),
            )
        )
    return session.get(Inference, result.id, populate_existing=True)


def enter_label(session: Session, row: Inference, label: str, why: str, who: str) -> None:
    """A later diagnosis: kept, counted, and told to `collect` where there is consent and a recording."""
    at = now()
    row.label, row.labelled_at, row.labelled_by = label, at, who
    tell = row.facts.get("consent_training") and row.audio_deleted_at is None
    session.add(Label(inference_id=row.id, label=label, why=why, who=who, at=at, published_at=None if tell else at))


def retry(session: Session, id: str, who: str) -> Inference:
    """Send a dead letter's request again; raises `Problem`: 404, 409, 410."""
    row = session.get(Inference, id, with_for_update=True)
    letters = session.scalars(select(DeadLetter).where(DeadLetter.inference_id == id)).all()
    if row is None or not letters:
        raise Problem(404, "unknown", f"no dead letter {id}; GET /v1/dead lists them")
    if row.state != ERROR or row.error != "no_answer":
        raise Problem(409, "answered", f"{id} is {row.state}: there is nothing to send again")
    if row.audio_deleted_at is not None:
        raise Problem(410, "audio_gone", f"the recording of {id} was deleted after its retention period")
    for letter in letters:
        if letter.retried_at is None:
            letter.retried_at, letter.retried_by = now(), who
    row.state, row.error, row.detail, row.completed_at = PROCESSING, None, None, None
    row.round, row.published_at = row.round + 1, None
    return row
