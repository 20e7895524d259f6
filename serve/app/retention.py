"""What must go: recordings after their time, everything of a subject who has withdrawn, uploads that never ended."""

import logging
from datetime import timedelta

from sqlalchemy import exists, func, or_, select

from access.database import now
from collect import ledger
from serve.app import incoming, live, metrics, recordings
from serve.app.records import COMPLETED, ERROR, PROCESSING, STATES, DeadLetter, Inference, Label
from serve.app.state import App
from spira_train.store import Lake

log = logging.getLogger("spira.app")
# A recording whose diagnosis has just been entered stays this long, so that `collect` can fetch it.
FETCH = timedelta(days=7)


def sweep(app: App) -> None:
    """One look at everything. What fails is tried again at the next."""
    for work in (withdraw, expire, incoming.mend, measure):
        try:
            work(app)
        except Exception as error:  # noqa: BLE001 - one that fails must not stop the others, nor the app
            log.error("%s: %s; it is tried again", work.__name__, type(error).__name__)


def withdraw(app: App) -> None:
    """Delete all inferences of subjects who have withdrawn: row, answer, labels and recording."""
    names = ledger.withdrawn(Lake(app.settings.lake))
    if not names:
        return
    with app.read() as session:
        known = set(session.scalars(select(Inference.subject).where(Inference.subject.is_not(None)).distinct()))
    for subject in known.intersection(names):
        with app.write.begin() as session:
            rows = session.scalars(select(Inference).where(Inference.subject == subject)).all()
            for row in rows:
                # the recording first: after a kill in between, the row leads here again
                recordings.delete(app.settings.audio, row.audio)
                recordings.spool(app.settings.home, row.id).unlink(missing_ok=True)
                session.delete(row)
        metrics.deleted.labels("withdrawn").inc(len(rows))
        log.warning("a subject has withdrawn: %d inferences deleted", len(rows))


def expire(app: App) -> None:
    """Delete recordings whose time is over; the answers stay."""
    before = now() - timedelta(days=app.settings.retention_days)
    waits = exists().where(Label.inference_id == Inference.id, Label.published_at.is_(None))
    asked = select(Inference).where(
        Inference.state.in_((COMPLETED, ERROR)),
        Inference.audio_deleted_at.is_(None),
        Inference.created_at < before,
        or_(Inference.labelled_at.is_(None), Inference.labelled_at < now() - FETCH),
        ~waits,
    )
    with app.read() as session:
        rows = session.scalars(asked.limit(500)).all()
    for row in rows:
        recordings.delete(app.settings.audio, row.audio)
        with app.write.begin() as session:
            if current := session.get(Inference, row.id):
                current.audio_deleted_at = now()
        metrics.deleted.labels("retention").inc()


def measure(app: App) -> None:
    """What Prometheus and the readers of the live accuracy are told."""
    with app.read() as session:
        known = live.compute(session)
        counts = dict(session.execute(select(Inference.state, func.count()).group_by(Inference.state)).tuples().all())
        oldest = session.scalar(select(func.min(Inference.created_at)).where(Inference.state == PROCESSING))
        dead = session.scalar(select(func.count()).where(DeadLetter.retried_at.is_(None)))
    live.write(app.settings.live_file, known)
    for state in STATES:
        metrics.states.labels(state).set(counts.get(state, 0))
    metrics.oldest.set((now() - oldest).total_seconds() if oldest else 0)
    metrics.dead.set(dead or 0)
