"""The conversation with TorchServe: one recording in, its answer out."""

import asyncio
import time
from typing import Any, NamedTuple

import httpx

from serve.gateway import metrics
from serve.gateway.problem import Problem, away
from serve.gateway.settings import Settings
from serve.gateway.tokens import Tokens


class Reply(NamedTuple):
    """body: the handler's, or TorchServe's own. Times in seconds."""

    status: int
    body: dict[str, Any]
    waited: float = 0.0
    asked: float = 0.0


class Upstream:
    """A TorchServe; at most `at_once` requests of ours are there at a time."""

    def __init__(self, settings: Settings) -> None:
        limits = httpx.Limits(max_connections=settings.at_once + 4)
        # trust_env off: a proxy of the surroundings must never see a recording
        self.http = httpx.AsyncClient(
            timeout=httpx.Timeout(settings.answer_seconds, connect=3), limits=limits, trust_env=False
        )
        self.url = f"{settings.inference}/predictions/{settings.model}"
        self.tokens = Tokens(settings.keys, settings.management, self.http)
        self._places = asyncio.Semaphore(settings.at_once)
        self._ready, self._looked = False, float("-inf")
        self._looking = asyncio.Lock()

    async def predict(self, recording: bytes, version: str | None, request_id: str) -> Reply:
        """What `version` says, or the default one where that is gone.

        The status is 200, or 422 with the handler's reason; raises `Problem` (502, 503) for all else.
        """
        came = time.perf_counter()
        async with self._places:
            began = time.perf_counter()
            reply = await self._ask(recording, version, request_id)
            if reply.status == 404 and version:
                metrics.fallbacks.labels(version).inc()
                reply = await self._ask(recording, None, request_id)
            ended = time.perf_counter()
        if reply.status in (200, 400, 422) and "model" in reply.body:
            self._ready, self._looked = True, time.monotonic()
            # 400: bytes that the handler takes for JSON, and that are none
            return Reply(200 if reply.status == 200 else 422, reply.body, began - came, ended - began)
        raise _failed(reply)

    async def shadow(self, recording: bytes, version: str, request_id: str) -> Reply:
        """What `version` says and nobody else; raises `Problem`."""
        reply = await self._ask(recording, version, request_id)
        if reply.status != 200:
            raise _failed(reply)
        return reply

    async def ready(self) -> bool:
        """Whether a model answers; looked at once a second at most."""
        async with self._looking:
            if time.monotonic() - self._looked > 1:
                try:  # what refuses this names itself as well
                    reply = await asyncio.wait_for(self._ask(b"not a recording", None, "ready"), 5)
                    self._ready = reply.status == 422 and "model" in reply.body
                except (Problem, TimeoutError):
                    self._ready = False
                self._looked = time.monotonic()
            return self._ready

    async def _ask(self, recording: bytes, version: str | None, request_id: str) -> Reply:
        url = f"{self.url}/{version}" if version else self.url
        headers = {"Content-Type": "application/octet-stream", "X-Request-ID": request_id, "X-Spira-Windows": "true"}
        refused, broken = None, False
        for _ in range(4):
            token = await self.tokens.current(refused)
            try:
                answer = await self.http.post(
                    url, content=recording, headers=headers | {"Authorization": f"Bearer {token}"}
                )
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                # The server closed a connection that we were about to use; a prediction changes nothing, so ask again.
                if broken:
                    raise away("the model server broke the connection off") from None
                broken = True
                continue
            except httpx.TimeoutException:
                raise away("the model server did not answer in time", error="timeout", seconds=5) from None
            except httpx.HTTPError:
                raise away("the model server does not answer") from None
            body = _json(answer)
            if answer.status_code == 400 and body.get("type") == "InvalidKeyException":
                refused = token
                continue
            if body.get("message") == "Worker died." and not broken:
                broken = True  # another one is there; a recording that kills the next as well is not sent a third time
                continue
            return Reply(answer.status_code, body)
        raise away("the model server takes none of our tokens")


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _failed(reply: Reply) -> Problem:
    model = reply.body.get("model")
    if isinstance(model, dict):
        detail = str(reply.body.get("detail", "the model gave no answer"))
        return Problem(502, "model", detail, version=str(model.get("version", "none")))
    if reply.status == 413:
        return Problem(413, "too_large", "the model server takes no recording of this size")
    if reply.status == 404:
        return away("no model is served", error="no_model", seconds=10)
    return away("the model server is busy or starting", error="model_server_busy")
