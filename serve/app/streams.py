"""The conversation over NATS JetStream: which streams, who reads them, and what counts as "the connection is gone".

A message is named by its id, so that JetStream drops one that is published twice within `DUPLICATES` seconds. It
holds ids, digests, paths and answers; no sound, nothing that names a person.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError, NotFoundError

from serve.app.settings import DUPLICATES, Settings
from serve.gateway.settings import secret

INFERENCES, LABELS = "SPIRA_INFERENCES", "SPIRA_LABELS"
REQUEST, RESULT, DEAD = "inference.request", "inference.result", "inference.dead"
ENTERED = "labels.entered"
WORKER, APP = "worker", "app"  # the durable consumers
PING = 5  # seconds; three unanswered and the connection is gone
LOST = (NatsError, OSError, TimeoutError, asyncio.TimeoutError, ExceptionGroup)


class Gone(ConnectionError):
    """The connection to NATS has ended."""


@asynccontextmanager
async def connected(settings: Settings, name: str) -> AsyncIterator[tuple[JetStreamContext, asyncio.Event]]:
    """JetStream with our streams and consumers in it, and an event that says that the connection has ended."""
    async with linked(settings.nats, settings.nats_token, name) as (link, gone):
        await _ensure(link, settings)
        yield link, gone


@asynccontextmanager
async def linked(address: str, token: Path | None, name: str) -> AsyncIterator[tuple[JetStreamContext, asyncio.Event]]:
    """JetStream, with both streams in it, and an event that says that the connection has ended.

    It does not reconnect by itself: whoever holds it starts over, and finds its streams even in an empty NATS.
    token: the file with NATS's token, where it wants one.
    """
    client, gone = Client(), asyncio.Event()

    async def closed() -> None:
        gone.set()

    async def quiet(error: Exception) -> None:
        """What matters is raised where it matters."""

    await client.connect(
        address,
        name=f"spira-{name}",
        allow_reconnect=False,
        max_reconnect_attempts=1,
        reconnect_time_wait=0,
        connect_timeout=3,
        ping_interval=PING,
        max_outstanding_pings=3,
        closed_cb=closed,
        error_cb=quiet,
        token=secret(token, "NATS's token") if token else None,
    )
    try:
        link = client.jetstream(timeout=5)
        for stream, subjects in ((INFERENCES, [REQUEST, RESULT, DEAD]), (LABELS, [ENTERED])):
            await _add(link, stream, subjects)
        yield link, gone
    finally:
        await client.close()


async def lost(gone: asyncio.Event) -> None:
    """Ends a task group when the connection has ended."""
    await gone.wait()
    raise Gone("the connection to NATS has ended")


async def publish(link: JetStreamContext, subject: str, id: str, body: bytes) -> None:
    """Returns when JetStream has stored the message, or had stored one of this id."""
    await link.publish(subject, body, headers={"Nats-Msg-Id": id})


async def _add(link: JetStreamContext, name: str, subjects: list[str]) -> None:
    # A message is gone when it has been taken: nothing of a patient stays, and a full disk refuses (the outbox waits)
    # instead of dropping what is oldest.
    stream = StreamConfig(
        name,
        subjects=subjects,
        retention=RetentionPolicy.WORK_QUEUE,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        duplicate_window=DUPLICATES,
    )
    try:
        await link.stream_info(name)
    except NotFoundError:
        try:
            await link.add_stream(stream)
        except BadRequestError:  # somebody else has just made it
            await link.stream_info(name)


async def _ensure(link: JetStreamContext, settings: Settings) -> None:
    # No limit of deliveries: the worker counts them itself, so that a dead letter is made even where a worker dies of
    # the last one.
    for durable, subjects, wait in (
        (WORKER, [REQUEST], settings.ack_seconds),
        (APP, [RESULT, DEAD], min(10, settings.ack_seconds)),
    ):
        config = ConsumerConfig(durable_name=durable, filter_subjects=subjects, ack_wait=wait, max_deliver=-1)
        await link.add_consumer(INFERENCES, config)


def named(error: BaseException) -> str:
    """The kinds of an error, or of a group of them."""
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(sorted({named(one) for one in error.exceptions}))
    return type(error).__name__
