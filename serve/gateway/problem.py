"""The one shape of every refusal: `{"error", "detail", "request_id"}`."""

from collections.abc import Mapping

from pydantic import BaseModel, Field


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


def word(reason: object) -> str:
    """A reason as one word: the handler has some of two, `not JSON`."""
    return str(reason).lower().replace(" ", "_")
