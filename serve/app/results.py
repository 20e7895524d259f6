"""Answers come back: each is entered once, whatever is delivered twice; committed first, acknowledged after that."""

import logging

from fastapi.concurrency import run_in_threadpool
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from pydantic import ValidationError

from serve.app import metrics, streams
from serve.app.records import Inference, Result, apply
from serve.app.state import App

log = logging.getLogger("spira.app")
BATCH, SECONDS = 50, 5.0


async def run(app: App, link: JetStreamContext) -> None:
    """Enter results until the connection ends."""
    subscription = await link.pull_subscribe_bind(streams.APP, streams.INFERENCES)
    while True:
        try:
            messages = await subscription.fetch(BATCH, timeout=SECONDS)
        except TimeoutError:
            continue
        known = [result for message in messages if (result := _read(message))]
        for row in await run_in_threadpool(_enter, app, known):
            app.tell(row.id)
        for message in messages:
            await message.ack()


def _enter(app: App, results: list[Result]) -> list[Inference]:
    with app.write.begin() as session:
        changed = [row for result in results if (row := apply(session, result))]
    for row in changed:
        metrics.answered.labels(row.state, row.error or "none").inc()
        metrics.seconds.observe(((row.completed_at or row.created_at) - row.created_at).total_seconds())
    metrics.repeated.inc(len(results) - len(changed))
    return changed


def _read(message: Msg) -> Result | None:
    try:
        return Result.model_validate_json(message.data)
    except ValidationError:
        log.error("a message on %s that no worker of ours sends; dropped", message.subject)
        return None
