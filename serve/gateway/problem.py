"""The one shape of every refusal: `{"error", "detail", "request_id"}`; and where a request's id comes from."""

import re
import uuid
from collections.abc import Mapping

from pydantic import BaseModel, Field
from starlette.types import Message, Scope

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Failure(BaseModel):
    """What a client gets instead of an answer."""

    error: str = Field(description="the reason in a word, for programs", examples=["too_short"])
    detail: str = Field(description="a sentence for people: what is wrong, what to do")
    request_id: str


class Problem(Exception):
    """Ends a request. version: the model's, where one has spoken."""

    def __init__(
        self,
        status: int,
        error: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        version: str = "none",
        content: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.error, self.detail = status, error, detail
        self.headers, self.version, self.content = dict(headers or {}), version, content


def away(detail: str, *, error: str = "model_server", seconds: int = 2) -> Problem:
    """503: nothing is wrong with the request; `seconds`: when to try again."""
    return Problem(503, error, detail, headers={"Retry-After": str(seconds)})


def identify(scope: Scope) -> str:
    """The request's id, `request.state.request_id` from here on: its own `X-Request-ID` where that can be, else new."""
    asked = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
    scope.setdefault("state", {})["request_id"] = request_id
    return request_id


def stamp(start: Message, request_id: str) -> None:
    """Put the id into the headers of an answer that begins."""
    headers = [pair for pair in start["headers"] if pair[0] != b"x-request-id"]
    start["headers"] = [*headers, (b"x-request-id", request_id.encode())]


def word(reason: object) -> str:
    """A reason as one word: the handler has some of two, `not JSON`."""
    return str(reason).lower().replace(" ", "_")
