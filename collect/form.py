"""The form of an upload: the file `recording` and `facts`, a JSON object. Nothing of it is written to disk."""

import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from collect.facts import Facts
from serve.gateway.problem import Problem

# The body in the OpenAPI page.
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["recording", "facts"],
                "properties": {
                    "recording": {"type": "string", "format": "binary", "description": "WAV, FLAC, OGG or MP3"},
                    "facts": {"type": "string", "description": f"a JSON object: {', '.join(Facts.model_fields)}"},
                },
            }
        }
    },
}


class _InMemory(MultiPartParser):
    spool_max_size = 2**40  # the body is in memory already


async def read_form(body: bytes, headers: Headers) -> tuple[bytes, dict[str, Any]]:
    """(recording, facts as they were sent); raises `Problem` (415, 422) where one is missing."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise Problem(415, "content_type", "send a form (multipart/form-data) with the file `recording` and `facts`")

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    try:
        form = await _InMemory(headers, stream(), max_files=1, max_fields=2, max_part_size=65_536).parse()
    except (MultiPartException, UnicodeError, KeyError):
        raise Problem(422, "not_a_form", "the form cannot be read") from None
    recording, facts = form.get("recording"), form.get("facts")
    if not isinstance(recording, UploadFile):
        raise Problem(422, "no_recording", "send the recording as the file `recording` of the form")
    if not isinstance(facts, str):
        raise Problem(422, "no_facts", "send what is known of the recording as `facts` of the form, a JSON object")
    try:
        given = json.loads(facts)
    except (ValueError, RecursionError):
        raise Problem(422, "not_json", "`facts` is not JSON") from None
    if not isinstance(given, dict):
        raise Problem(422, "not_json", "`facts` must be a JSON object")
    return await recording.read(), given
