"""Every refusal of a service in one shape, `{"error", "detail", "request_id"}`, and an id for every request."""

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.gateway.problem import Failure, Problem, identify, stamp, word

log = logging.getLogger("spira.access")


def install(app: FastAPI) -> None:
    """Handlers for `Problem`, for what FastAPI raises and for faults; `request.state.request_id` everywhere."""
    app.add_middleware(Identified)
    app.add_exception_handler(Problem, _refused)
    app.add_exception_handler(HTTPException, _unrouted)
    app.add_exception_handler(RequestValidationError, _invalid)
    for away in (OperationalError, PoolTimeout):
        app.add_exception_handler(away, _database_away)
    app.add_exception_handler(Exception, _crashed)


class Identified:
    """Takes over `X-Request-ID`, or makes one, and answers with it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request_id = identify(scope)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                stamp(message, request_id)
            await send(message)

        await self.app(scope, receive, tell)


def failure(request: Request, status: int, error: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    """A refusal as an answer."""
    request_id = request.state.request_id
    body = Failure(error=error, detail=detail, request_id=request_id).model_dump()
    return JSONResponse(body, status, (headers or {}) | {"X-Request-ID": request_id, "Cache-Control": "no-store"})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101 - for the type checker
    return failure(request, error.status, error.error, error.detail, error.headers)


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    return failure(request, error.status_code, word(error.detail), str(error.detail), dict(error.headers or {}))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    first = error.errors()[0]  # its `input` may be a patient's data: named is the field, never the value
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return failure(request, 422, "field", f"{where or 'the request'}: {first['msg']}")


async def _database_away(request: Request, error: Exception) -> Response:
    reason = error.orig if isinstance(error, DBAPIError) and error.orig else error
    log.error("%s: the database is away (%s)", request.state.request_id, type(reason).__name__)
    return failure(request, 503, "database", "the database is away for a moment; try again", {"Retry-After": "2"})


async def _crashed(request: Request, error: Exception) -> Response:
    # The type alone: the text of an error may hold what was sent.
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
    log.error("%s: fault: %s at %s", request.state.request_id, type(error).__name__, place)
    return failure(request, 500, "fault", "a fault of the service; it is in its log", {"Connection": "close"})
