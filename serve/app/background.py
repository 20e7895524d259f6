"""What the app does beside answering: publishes, enters results, sweeps. Whatever breaks off is begun again."""

import asyncio
import logging

from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import SQLAlchemyError

from serve.app import metrics, outbox, results, retention, streams
from serve.app.state import App
from serve.gateway.settings import Mistake

log = logging.getLogger("spira.app")
PAUSE = 1.0  # seconds before it is begun again


async def messages(app: App) -> None:
    """Talk with NATS for ever; where it or the database is away, what must be said waits in the database."""
    while True:
        try:
            async with streams.connected(app.settings, "app") as (link, gone), asyncio.TaskGroup() as group:
                _connected(app, True)
                group.create_task(streams.lost(gone))
                group.create_task(outbox.run(app, link))
                group.create_task(results.run(app, link))
        except (*streams.LOST, SQLAlchemyError, Mistake) as error:
            log.warning("messages: %s; beginning again", streams.named(error))
        finally:
            _connected(app, False)
        await asyncio.sleep(PAUSE)


async def sweeps(app: App) -> None:
    """At the start, and from time to time."""
    while True:
        await run_in_threadpool(retention.sweep, app)
        app.wake()
        await asyncio.sleep(app.settings.sweep_seconds)


def _connected(app: App, is_so: bool) -> None:
    app.connected = is_so
    metrics.connected.set(is_so)
