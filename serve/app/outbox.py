"""What must be told to others is in the database first, and is published from there: nothing is lost by a kill.

Published means stored by JetStream. A kill between that and the note of it publishes again, which JetStream drops.
"""

import json
from typing import Any

import anyio
from fastapi.concurrency import run_in_threadpool
from nats.js import JetStreamContext
from sqlalchemy import select, update

from access.database import now
from serve.app import metrics, streams
from serve.app.records import Inference, Label, due
from serve.app.state import App

SECONDS = 1.0  # between two looks, where nobody calls
Message = tuple[str, str, bytes]  # subject, id, body


async def run(app: App, link: JetStreamContext) -> None:
    """Publish until the connection ends."""
    while True:
        while await _requests(app, link) or await _labels(app, link):
            pass
        await app.work(SECONDS)


async def _requests(app: App, link: JetStreamContext) -> int:
    rows = await run_in_threadpool(_due, app)
    if rows:
        await _publish(link, [(streams.REQUEST, f"{row.id}.{row.round}", request(row)) for row in rows])
        await run_in_threadpool(_note, app, Inference, Inference.id, [row.id for row in rows])
        metrics.published.inc(len(rows))
        metrics.redriven.inc(sum(row.published_at is not None for row in rows))
    return len(rows)


async def _labels(app: App, link: JetStreamContext) -> int:
    pairs = await run_in_threadpool(_entered, app)
    if pairs:
        messages = [(streams.ENTERED, f"{row.id}.{one.number}", label(row, one)) for one, row in pairs]
        await _publish(link, messages)
        await run_in_threadpool(_note, app, Label, Label.number, [one.number for one, _ in pairs])
    return len(pairs)


async def _publish(link: JetStreamContext, messages: list[Message]) -> None:
    async with anyio.create_task_group() as group:
        for subject, id, body in messages:
            group.start_soon(streams.publish, link, subject, id, body)


def _due(app: App) -> list[Inference]:
    with app.read() as session:
        return list(due(session, app.settings.redrive_seconds))


def _entered(app: App) -> list[tuple[Label, Inference]]:
    asked = select(Label, Inference).join(Inference, Inference.id == Label.inference_id)
    asked = asked.where(Label.published_at.is_(None)).order_by(Label.number).limit(200)
    with app.read() as session:
        return [(one, row) for one, row in session.execute(asked)]


def _note(app: App, table: Any, column: Any, keys: list[Any]) -> None:
    with app.write.begin() as session:
        session.execute(update(table).where(column.in_(keys)).values(published_at=now()))


def request(row: Inference) -> bytes:
    """The body of `inference.request`: what a worker needs, and nothing of the person."""
    return json.dumps({"id": row.id, "round": row.round, "audio": row.audio}).encode()


def label(row: Inference, entered: Label) -> bytes:
    """The body of `labels.entered`: audio is a path below SPIRA_APP_AUDIO, facts.subject a pseudonym already."""
    body = {
        "inference_id": row.id,
        "number": entered.number,
        "label": entered.label,
        "why": entered.why,
        "who": entered.who,
        "at": entered.at.isoformat(),
        "audio": row.audio,
        "sha256": row.sha256,
        "day": row.day,
        "facts": row.facts | {"subject": row.subject},
    }
    return json.dumps(body).encode()
