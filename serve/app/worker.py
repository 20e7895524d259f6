"""`python -m serve.app worker`: takes requests from NATS, asks the gateway, publishes what it says.

It reads recordings, never the database, and may be killed at any moment: a request is acknowledged only when its
result is stored, and JetStream gives one that is not to the next worker. As many may run as there is work for.
"""

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
from fastapi.concurrency import run_in_threadpool
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from pydantic import BaseModel, ValidationError

from serve.app import recordings, streams
from serve.app.records import Result
from serve.app.settings import Settings
from serve.gateway.settings import Mistake, secret

log = logging.getLogger("spira.worker")
FETCH_SECONDS, PAUSE = 2.0, 1.0
# What asking again does not change; `error` in the body says why.
_FINAL = (400, 413, 415, 422)


class Request(BaseModel):
    """A message of `inference.request`."""

    id: str
    round: int
    audio: str


class Later(Exception):
    """There is no answer now. seconds: how long the gateway asks to wait."""

    def __init__(self, error: str, detail: str, seconds: float = 0) -> None:
        super().__init__(detail)
        self.error, self.detail, self.seconds = error, detail, seconds


async def run(settings: Settings, stop: asyncio.Event) -> None:
    """Work until `stop`; what is at the gateway then is finished."""
    limits = httpx.Limits(max_connections=settings.at_once)
    timeout = httpx.Timeout(settings.answer_seconds, connect=3)
    # trust_env off: a proxy of the surroundings must never see a recording
    async with httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False) as http:
        while not stop.is_set():
            try:
                async with streams.connected(settings, "worker") as (link, gone):
                    log.warning("connected to NATS")
                    async with asyncio.TaskGroup() as group:
                        watch = group.create_task(streams.lost(gone))
                        async with asyncio.TaskGroup() as workers:
                            for _ in range(settings.at_once):
                                workers.create_task(_take(settings, link, http, stop))
                        watch.cancel()
            except streams.LOST as error:
                log.warning("NATS is away (%s); trying again", streams.named(error))
                await asyncio.sleep(PAUSE)


async def _take(settings: Settings, link: JetStreamContext, http: httpx.AsyncClient, stop: asyncio.Event) -> None:
    subscription = await link.pull_subscribe_bind(streams.WORKER, streams.INFERENCES)
    while not stop.is_set():
        try:
            (message,) = await subscription.fetch(1, timeout=FETCH_SECONDS)
        except TimeoutError:
            continue
        await handle(settings, link, http, message)


async def handle(settings: Settings, link: JetStreamContext, http: httpx.AsyncClient, message: Msg) -> None:
    """One request: its result is stored first, then it is acknowledged; or it comes again later."""
    try:
        request = Request.model_validate_json(message.data)
    except ValidationError:
        log.error("a message on %s that the app does not send; dropped", message.subject)
        await message.term()
        return
    tries = message.metadata.num_delivered or 1
    told: dict[str, Any] = {"id": request.id, "round": request.round, "tries": tries}
    try:
        if tries > settings.tries:  # the last worker did not live to say so
            raise Later("worker_died", "the worker ended while it had this request")
        result = Result(**told, **await _ask(settings, http, request))
    except Later as later:
        if tries < settings.tries:
            log.warning("%s: try %d: %s", request.id, tries, later.error)
            await message.nak(delay=max(settings.pauses[tries - 1], later.seconds))
            return
        log.error("%s: no answer after %d tries: %s", request.id, tries, later.error)
        result = Result(**told, error=later.error, detail=later.detail, dead=True)
    subject = streams.DEAD if result.dead else streams.RESULT
    await streams.publish(link, subject, f"{request.id}.{request.round}.result", result.model_dump_json().encode())
    await message.ack()


async def _ask(settings: Settings, http: httpx.AsyncClient, request: Request) -> dict[str, Any]:
    """{answer} or {error, detail}; raises `Later` where asking again may help."""
    try:
        sound = await run_in_threadpool(recordings.read, settings.audio, request.audio)
    except FileNotFoundError:
        return {"error": "audio_gone", "detail": "the recording was deleted before the model had heard it"}
    except OSError as error:
        raise Later("audio", f"the recording cannot be read ({error.strerror})") from None
    headers = {
        "Authorization": f"Bearer {_key(settings.gateway_key)}",
        "Content-Type": "application/octet-stream",
        "X-Request-ID": request.id,
    }
    url = f"{settings.gateway.rstrip('/')}/v1/predict"
    try:
        said = await http.post(url, params={"windows": "true"}, content=sound, headers=headers)
        body = said.json()
    except httpx.HTTPError as error:
        raise Later("gateway", f"the gateway does not answer ({type(error).__name__})") from None
    except ValueError:
        raise Later("gateway", f"the gateway answers {said.status_code} and no JSON") from None
    if said.status_code == 200 and isinstance(body, dict):
        return {"answer": body}
    told = body if isinstance(body, dict) else {}
    word, detail = str(told.get("error", "gateway"))[:64], str(told.get("detail", f"HTTP {said.status_code}"))
    if said.status_code in _FINAL:
        return {"error": word, "detail": detail}
    wait = said.headers.get("Retry-After", "")
    raise Later(word, detail, float(wait) if wait.isdigit() else 0)


def _key(file: Path) -> str:
    try:
        return secret(file, "the gateway's key")
    except Mistake as mistake:
        raise Later("key", str(mistake)) from None
