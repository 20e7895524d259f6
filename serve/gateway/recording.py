"""A request's body -> the bytes of the recording in it. Nothing is written to disk."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator

from fastapi import Request
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from serve.gateway.problem import Problem

CLOSE = {"Connection": "close"}  # what is left of the body would be taken for the next request
TYPES = ("audio/*", "application/octet-stream", "multipart/form-data", "application/json")
# The body in the OpenAPI page.
BODY = {
    "required": True,
    "content": {
        "audio/*": {"schema": {"type": "string", "format": "binary"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"audio": {"type": "string", "format": "binary"}},
                "required": ["audio"],
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {"audio": {"type": "string", "format": "byte", "description": "base64"}},
                "required": ["audio"],
            }
        },
    },
}


def kind(request: Request) -> str:
    """`raw`, `form` or `json`; raises `Problem` (415) for other content types."""
    told = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if told.startswith("audio/") or told == "application/octet-stream":
        return "raw"
    if found := {"multipart/form-data": "form", "application/json": "json"}.get(told):
        return found
    raise Problem(
        415,
        "content_type",
        f"{told or 'no Content-Type'}: send {', '.join(TYPES)}",
        headers={"Accept-Post": ", ".join(TYPES)} | CLOSE,
    )


async def receive(request: Request, limit: int, seconds: float) -> bytes:
    """The body; raises `Problem`: 413 beyond `limit` bytes, 408 where it has not come after `seconds`."""
    too_large = Problem(413, "too_large", f"a request may have {limit} bytes", headers=CLOSE)
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise Problem(408, "too_slow", f"the recording did not arrive within {seconds:g} s", headers=CLOSE) from None
    except ClientDisconnect:  # nobody is left to read this
        raise Problem(400, "cut_off", "the connection ended before the recording did", headers=CLOSE) from None
    return bytes(body)


async def extract(how: str, body: bytes, headers: Headers) -> bytes:
    """The recording in a body of this kind; raises `Problem` (422) where there is none."""
    match how:
        case "form":
            content = await _form(body, headers)
        case "json":
            content = await asyncio.to_thread(_json, body)  # 32 MB of base64 take a tenth of a second
        case _:
            content = body
    if not content:
        raise Problem(422, "no_recording", "the recording is empty")
    return content


class _InMemory(MultiPartParser):
    spool_max_size = 2**40  # the body is in memory already


async def _form(body: bytes, headers: Headers) -> bytes:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    try:
        form = await _InMemory(headers, stream(), max_files=1, max_fields=10).parse()
    except (MultiPartException, UnicodeError) as error:
        raise Problem(422, "not_a_form", f"the form cannot be read: {getattr(error, 'message', error)}") from None
    found = form.get("audio")
    if not isinstance(found, UploadFile):
        raise Problem(422, "no_recording", "send the recording as the file `audio` of the form")
    return await found.read()


def _json(body: bytes) -> bytes:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(422, "not_json", "the body is not JSON") from None
    try:
        return base64.b64decode(value["audio"], validate=True)
    except (KeyError, TypeError, ValueError):
        raise Problem(422, "no_recording", 'JSON must be {"audio": "<base64>"}') from None
