"""The HTTP side: `POST /v1/predict`, `/healthz`, `/readyz`, `/docs`."""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from limits import parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.gateway import clients, files, metrics, page, recording, routes
from serve.gateway.answer import Prediction, shaped
from serve.gateway.problem import Failure, Problem, away, identify, stamp, word
from serve.gateway.recording import CLOSE
from serve.gateway.settings import Settings
from serve.gateway.shadow import Job, Shadow
from serve.gateway.upstream import Reply, Upstream

log = logging.getLogger("spira.gateway")
PREDICT = "/v1/predict"
# Of an answer; `heard` is what spira-train watch compares with the training data.
AUDITED = ("probability", "calibrated", "diagnosis", "warnings", "heard")
WINDOWS = ("windows", "window_seconds", "step_seconds")  # of an answer, where asked for
_ID_HEADER = {
    "name": "X-Request-ID",
    "in": "header",
    "schema": {"type": "string"},
    "description": "up to 64 letters, digits, `.`, `_`, `-`; any other is replaced, and the answer says by which",
}
_FLUSH_SECONDS = 5.0  # for the shadow, at the end
_REFUSALS = {
    400: "the connection ended before the recording did",
    401: "no key, or a wrong one",
    408: "the recording arrived too slowly",
    413: "the recording is too large",
    415: "a content type that no recording has",
    422: "not a usable recording; `error` names the reason",
    429: "more requests than the client's rate allows; see Retry-After",
    502: "the model itself failed on this recording",
    503: "the model server is away or busy, or too many requests are in flight; see Retry-After",
}
_SUMMARY = """Says of a recorded sentence how probable respiratory insufficiency is. Not a medical device.

Every answer names the model that gave it. `X-Request-ID` is taken over from the request or made, and is in every
answer; never put a name into it."""


@dataclass
class Gateway:
    """What lives as long as the process."""

    settings: Settings
    clients: files.Watched[clients.Clients]
    routes: files.Watched[routes.Routes]
    upstream: Upstream
    shadow: Shadow
    limiter: MovingWindowRateLimiter
    in_flight: int = 0
    held: Counter[str] = field(default_factory=Counter)  # by client
    draining: bool = False

    @contextmanager
    def place(self, client: str) -> Iterator[None]:
        """One of the places in flight; what finds none is shed at once: a queue would only hide the overload.

        A quarter of them is out of one client's reach: slow or eager, it cannot keep the others out.
        """
        most = max(1, self.settings.in_flight * 3 // 4)
        if self.in_flight >= self.settings.in_flight or self.held[client] >= most:
            raise Problem(503, "busy", "too many requests are in flight", headers={"Retry-After": "1"} | CLOSE)
        self.in_flight += 1
        self.held[client] += 1
        metrics.in_flight.set(self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1
            self.held[client] -= 1
            metrics.in_flight.set(self.in_flight)


def create(settings: Settings) -> FastAPI:
    """The application; raises `Mistake` where `clients.json` or `routes.json` cannot be read."""
    gateway = Gateway(
        settings,
        files.Watched(settings.home / "clients.json", clients.Clients),
        files.Watched(settings.home / "routes.json", routes.Routes),
        upstream := Upstream(settings),
        Shadow(upstream, settings.home / "shadow.jsonl", settings.shadow_queue),
        MovingWindowRateLimiter(MemoryStorage()),
    )
    app = FastAPI(title="SPIRA", version="1", description=_SUMMARY, lifespan=_lifespan, docs_url=None, redoc_url=None)
    app.state.gateway = gateway
    app.add_middleware(_identified, gateway=gateway)
    app.add_exception_handler(Problem, _refused)
    app.add_exception_handler(HTTPException, _unrouted)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _crashed)
    app.add_api_route(
        PREDICT,
        predict,
        methods=["POST"],
        response_model=Prediction,
        response_model_exclude_none=True,
        responses={status: {"model": Failure, "description": text} for status, text in _REFUSALS.items()},
        openapi_extra={"requestBody": recording.BODY, "parameters": [_ID_HEADER]},
        summary="Ask the model about one recording",
    )
    app.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False)
    app.add_api_route("/healthz", alive, methods=["GET"], summary="Whether the gateway is alive")
    app.add_api_route(
        "/readyz",
        ready,
        methods=["GET"],
        summary="Whether a model answers",
        responses={503: {"model": Failure, "description": "no model answers, or the gateway is about to stop"}},
    )
    return app


_bearer = HTTPBearer(auto_error=False, description="Authorization: Bearer KEY")
_header = APIKeyHeader(name="X-API-Key", auto_error=False)


async def _client(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    header: Annotated[str | None, Security(_header)],
) -> str:
    """Whose key the request carries, within the client's rate; raises `Problem`: 401, 429."""
    gateway: Gateway = request.app.state.gateway
    known = gateway.clients.get()
    key = bearer.credentials if bearer else header
    name = clients.owner(known, key) if key else None
    if name is None:
        said = "this key is not known" if key else "send your key as Authorization: Bearer KEY, or as X-API-Key"
        raise Problem(401, "key", said, headers={"WWW-Authenticate": "Bearer"} | CLOSE)
    rate = parse(known.clients[name].rate)
    if not await gateway.limiter.hit(rate, name):
        window = await gateway.limiter.get_window_stats(rate, name)
        wait = max(1, math.ceil(window.reset_time - time.time()))
        raise Problem(429, "rate", f"{name} may ask {rate}", headers={"Retry-After": str(wait)} | CLOSE)
    return name


async def predict(
    request: Request,
    client: Annotated[str, Depends(_client)],
    windows: Annotated[bool, Query(description="also answer the probability of each window")] = False,
) -> Any:
    """Send the recording (WAV, FLAC, OGG, MP3) as the body, as the file `audio` of a form, or as JSON in base64."""
    gateway: Gateway = request.app.state.gateway
    settings, request_id = gateway.settings, request.state.request_id
    how = recording.kind(request)
    with gateway.place(client):
        body = await recording.receive(request, settings.max_bytes, settings.body_seconds)
        content = await recording.extract(how, body, request.headers)
        del body
        known = gateway.routes.get()
        reply = await gateway.upstream.predict(content, routes.canary(known, client), request_id)
    answer = shaped(reply, request_id)
    request.state.version = version = reply.body["model"]["version"]
    _note(gateway, client, request_id, reply, version)
    if answer is None:
        raise Problem(422, word(reply.body.get("error")), str(reply.body.get("detail")), version=version)
    if challenger := routes.shadow(known):
        gateway.shadow.offer(Job(request_id, content, challenger, reply.body))
    return answer if windows else answer.model_copy(update=dict.fromkeys(WINDOWS))


def _note(gateway: Gateway, client: str, request_id: str, reply: Reply, version: str) -> None:
    """The audit line of an answer, and its figures; an answer that cannot be audited is not given."""
    body = reply.body
    line = {"time": datetime.now(UTC).isoformat(), "request_id": request_id, "client": client, "status": reply.status}
    line |= {"version": version, "content": body["model"]["content"]}
    if reply.status == 200:
        line |= {field: body[field] for field in AUDITED if field in body}
    else:
        line |= {"error": word(body.get("error"))}
    try:
        files.append(gateway.settings.audit_file, line)
    except OSError as error:
        log.error("audit.jsonl: cannot be written (%s); no answer is given without its line", error.strerror)
        raise away("the gateway cannot keep its records", error="audit", seconds=30) from None
    metrics.queue_seconds.labels(version).observe(reply.waited)
    metrics.model_seconds.labels(version).observe(reply.asked)
    if reply.status == 200:
        metrics.windows.labels(version).inc(len(body.get("windows") or ()))
        metrics.probability.labels(version).observe(body["probability"])
        metrics.diagnoses.labels(version, body["diagnosis"]).inc()
        for warning in body["warnings"]:
            metrics.warnings.labels(version, warning).inc()


async def docs(request: Request) -> Response:
    """What this API takes and answers, for people."""
    return page.render(request.app.openapi(), str(request.base_url).rstrip("/"))


async def alive() -> dict[str, str]:
    """Says nothing of the model server: a gateway that is restarted does not mend that."""
    return {"status": "alive"}


async def ready(request: Request) -> dict[str, str]:
    """Asks TorchServe, once a second at most."""
    gateway: Gateway = request.app.state.gateway
    if gateway.draining:
        raise away("the gateway is about to stop", error="draining")
    if not await gateway.upstream.ready():
        raise away("no model answers")
    return {"status": "ready"}


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    gateway: Gateway = app.state.gateway
    worker = asyncio.create_task(gateway.shadow.run())
    yield
    await gateway.shadow.finish(_FLUSH_SECONDS)
    worker.cancel()
    with suppress(asyncio.CancelledError):
        await worker
    await gateway.upstream.http.aclose()


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101 - for the type checker
    return _failure(request, error.status, error.error, error.detail, error.headers, error.version)


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    return _failure(
        request, error.status_code, word(error.detail), f"see {PREDICT} at /docs", dict(error.headers or {})
    )


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return _failure(request, 422, "parameter", f"{where}: {first['msg']}", CLOSE)


async def _crashed(request: Request, error: Exception) -> Response:
    log.error("%s: fault", request.state.request_id, exc_info=error)
    return _failure(request, 500, "fault", "a fault of the gateway; it is in its log", {"Connection": "close"})


def _failure(
    request: Request, status: int, error: str, detail: str, headers: dict[str, str], version: str = "none"
) -> Response:
    request_id = request.state.request_id
    if request.url.path == PREDICT:
        metrics.errors.labels(version, error).inc()
    body = Failure(error=error, detail=detail, request_id=request_id).model_dump()
    return JSONResponse(body, status, headers | {"X-Request-ID": request_id})


def _identified(app: ASGIApp, gateway: Gateway) -> ASGIApp:
    """Give every request its id, and count and time those for a prediction."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        came = time.perf_counter()
        request_id, state = identify(scope), scope["state"]

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                stamp(message, request_id)
                if gateway.draining:
                    message["headers"].append((b"connection", b"close"))
                if scope["path"] == PREDICT:
                    version = state.get("version", "none")
                    metrics.requests.labels(version, message["status"]).inc()
                    metrics.seconds.labels(version).observe(time.perf_counter() - came)
            await send(message)

        await app(scope, receive, tell)

    return call
