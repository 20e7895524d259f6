"""`/collect/v1/...` handed on to the collection, where no reverse proxy does that. It asks itself who it is."""

from collections.abc import AsyncIterator

import httpx
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

from serve.gateway.problem import Problem, away

# What belongs to one connection, or is told anew.
_OWN = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "proxy-authorization", "expect"}
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
_SECONDS = httpx.Timeout(150, connect=3)  # a slow upload takes 120


def client() -> httpx.AsyncClient:
    """To be closed at the end. trust_env off: a proxy of the surroundings must never see a recording."""
    return httpx.AsyncClient(timeout=_SECONDS, trust_env=False, limits=httpx.Limits(max_connections=64))


def router(collect: str, http: httpx.AsyncClient) -> APIRouter:
    """collect: the collection's address."""
    made = APIRouter(include_in_schema=False)

    async def hand_on(request: Request, path: str) -> Response:
        if any(part in (".", "..") for part in path.split("/")) or "\\" in path:
            raise Problem(404, "not_found", "no such address")
        url = httpx.URL(collect.rstrip("/")).copy_with(
            raw_path=request.scope["raw_path"].removeprefix(b"/collect") + _query(request)
        )
        headers = [(name, value) for name, value in request.headers.raw if name.decode("latin-1") not in _OWN]
        headers.append((b"x-request-id", request.state.request_id.encode()))
        asked = http.build_request(request.method, url, headers=headers, content=_body(request))
        try:
            said = await http.send(asked, stream=True)
        except httpx.HTTPError:
            raise away("the collection is away; try again", error="collection") from None
        kept = [(name, value) for name, value in said.headers.raw if name.decode("latin-1").lower() not in _OWN]
        answer = StreamingResponse(said.aiter_raw(), said.status_code, background=BackgroundTask(said.aclose))
        answer.raw_headers = [(name.lower(), value) for name, value in kept]
        return answer

    made.add_api_route("/collect/v1/{path:path}", hand_on, methods=_METHODS)
    return made


def _query(request: Request) -> bytes:
    query: bytes = request.scope["query_string"]
    return b"?" + query if query else b""


def _body(request: Request) -> AsyncIterator[bytes] | None:
    has = "content-length" in request.headers or "transfer-encoding" in request.headers
    return request.stream() if has else None
