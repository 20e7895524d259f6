"""The holder of TorchServe's token where renewals are slow or fail; the rest is tried on a real one."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from serve.gateway.problem import Problem
from serve.gateway.tokens import Tokens


def keys(folder: Path, token: str, minutes: float) -> Path:
    until = (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat()
    file = folder / "key_file.json"
    file.write_text(json.dumps({"inference": {"key": token, "expiration time": until}, "API": {"key": "api"}}))
    return file


def asked(file: Path, renewal, *refused: str | None) -> list:
    """What callers that come at once are given. renewal: answers the management API."""

    async def ask() -> list:
        async with httpx.AsyncClient(transport=httpx.MockTransport(renewal)) as http:
            tokens = Tokens(file, "http://127.0.0.1:9", http)
            return await asyncio.gather(*(tokens.current(one) for one in refused), return_exceptions=True)

    return asyncio.run(ask())


def test_who_comes_while_it_is_renewed_waits_for_that_renewal(tmp_path):
    file, calls = keys(tmp_path, "old", 1), []

    async def slowly(request: httpx.Request) -> httpx.Response:
        calls.append((request.url.params["type"], request.headers["Authorization"]))
        await asyncio.sleep(0.05)
        keys(tmp_path, "new", 60)
        return httpx.Response(200)

    assert asked(file, slowly, *[None] * 8) == ["new"] * 8
    assert calls == [("inference", "Bearer api")]


def test_a_token_that_still_holds_is_used_where_it_cannot_be_renewed(tmp_path):
    calls = []

    def away(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        raise httpx.ConnectError("away")

    assert asked(keys(tmp_path, "old", 1), away, None, None, None) == ["old"] * 3
    assert len(calls) == 1, "not tried again by each request"
    (problem,) = asked(keys(tmp_path, "old", 30), away, "old")
    assert isinstance(problem, Problem) and problem.status == 503


@pytest.mark.parametrize("content", ["", "{}", '{"inference": {"key": "x"}}', None])
def test_a_key_file_that_is_missing_or_half_written(tmp_path, content):
    file = tmp_path / "key_file.json"
    if content is not None:
        file.write_text(content)
    (problem,) = asked(file, lambda request: httpx.Response(200), None)
    assert isinstance(problem, Problem) and problem.status == 503
    assert "Retry-After" in problem.headers
