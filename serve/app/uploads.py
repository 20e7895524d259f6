"""How a recording comes in: in pieces that a bad network may break off, or as one body; never twice."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from access.accounts import Role
from access.web import Person, who
from serve.app import incoming, recordings
from serve.app.incoming import ID, New
from serve.app.records import UPLOADING, Inference, Shown, mine, shown
from serve.app.state import App
from serve.gateway.problem import Failure, Problem

Id = Annotated[str, Path(pattern=ID)]
Clinician = Annotated[Person, Depends(who(Role.clinician))]
_BODY = {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": Failure, "description": "nobody is logged in"},
    403: {"model": Failure, "description": "without the role, or a forged request"},
    404: {"model": Failure, "description": "no such inference of yours"},
    408: {"model": Failure, "description": "the body came too slowly; what arrived is kept"},
    409: {"model": Failure, "description": "another recording has this id, or another offset is due"},
    413: {"model": Failure, "description": "larger than announced, or than is taken"},
    422: {"model": Failure, "description": "a field or a digest that cannot be"},
    429: {"model": Failure, "description": "too many uploads of this account are unfinished"},
}


def router() -> APIRouter:
    """The routes of uploads."""
    made = APIRouter(prefix="/v1/inferences", tags=["inferences"], responses=REFUSALS)
    again: dict[int | str, dict[str, Any]] = {200: {"model": Shown, "description": "known already; see `offset`"}}
    done: dict[int | str, dict[str, Any]] = {202: {"model": Shown, "description": "complete; the model will be asked"}}
    made.add_api_route(
        "",
        begin,
        methods=["POST"],
        status_code=201,
        response_model=Shown,
        responses=again,
        summary="Announce an upload",
    )
    made.add_api_route(
        "/{id}/audio",
        piece,
        methods=["PATCH"],
        response_model=Shown,
        responses=done,
        openapi_extra={"requestBody": _BODY},
        summary="Send the next piece of a recording",
    )
    made.add_api_route(
        "/{id}/audio",
        where,
        methods=["HEAD"],
        response_class=Response,
        summary="How much of a recording has arrived",
    )
    made.add_api_route(
        "/{id}",
        whole,
        methods=["PUT"],
        status_code=202,
        response_model=Shown,
        openapi_extra={"requestBody": _BODY},
        summary="Send a whole recording at once",
    )
    return made


def begin(request: Request, person: Clinician, new: New, response: Response) -> Shown:
    """The same id and digest again is no mistake: the answer says how much has arrived."""
    app = request.app.state.app
    if new.bytes > app.settings.max_bytes:
        raise Problem(413, "too_large", f"a recording may have {app.settings.max_bytes} bytes")
    row = incoming.fresh(app, person, new)
    created = incoming.create(app, row)
    found = row if created else incoming.known(app, person, new.id, new.sha256, new.bytes)
    response.status_code = 201 if created else 200
    return _progress(app, found)


async def piece(
    request: Request, person: Clinician, id: Id, upload_offset: Annotated[int, Header(ge=0, le=2**40)]
) -> Response:
    """The body is appended at `Upload-Offset`, which must be where the upload stands. With the last one it is done."""
    app: App = request.app.state.app
    row = await run_in_threadpool(_mine, app, id, person)
    file = recordings.spool(app.settings.home, id)
    if row.state != UPLOADING:
        return _answer(202, shown(row).model_copy(update={"offset": row.bytes}))
    due = recordings.offset(file)
    if upload_offset != due:
        return _elsewhere(request, due)
    with incoming.writing(app, id):
        await incoming.append(app, request, id, file, row.bytes)
        if recordings.offset(file) < row.bytes:
            return _answer(200, _progress(app, row))
        row = await run_in_threadpool(incoming.finish, app, row, file)
    return _answer(202, shown(row).model_copy(update={"offset": row.bytes}))


def where(request: Request, person: Clinician, id: Id) -> Response:
    """The header `Upload-Offset` says it."""
    app = request.app.state.app
    row = _mine(app, id, person)
    offset = recordings.offset(recordings.spool(app.settings.home, id)) if row.state == UPLOADING else row.bytes
    return Response(headers={"Upload-Offset": str(offset), "Cache-Control": "no-store"})


async def whole(request: Request, person: Clinician, id: Id, language: Literal["pt", "en"] = "pt") -> Shown:
    """For simple clients. Again with the same bytes is no mistake and changes nothing."""
    app: App = request.app.state.app
    file = recordings.spool(app.settings.home, f"{id}.{request.state.request_id[:32]}.put")
    try:
        with incoming.writing(app, file.name):
            await incoming.append(app, request, file.name, file, app.settings.max_bytes)
        size = recordings.offset(file)
        if not size:
            raise Problem(422, "no_recording", "the recording is empty")
        sha256 = await run_in_threadpool(recordings.digest, file)
        row = incoming.fresh(app, person, New(id=id, bytes=size, sha256=sha256, language=language))
        if not await run_in_threadpool(incoming.create, app, row):
            row = await run_in_threadpool(incoming.known, app, person, id, sha256, size)
        if row.state == UPLOADING:
            row = await run_in_threadpool(incoming.finish, app, row, file)
        return shown(row)
    finally:
        file.unlink(missing_ok=True)


def _mine(app: App, id: str, person: Person) -> Inference:
    with app.read() as session:
        return mine(session, id, person.name)


def _progress(app: App, row: Inference) -> Shown:
    offset = recordings.offset(recordings.spool(app.settings.home, row.id)) if row.state == UPLOADING else row.bytes
    return shown(row).model_copy(update={"offset": offset})


def _answer(status: int, body: Shown) -> Response:
    headers = {"Upload-Offset": str(body.offset)}
    return JSONResponse(body.model_dump(mode="json", exclude_none=True), status, headers)


def _elsewhere(request: Request, due: int) -> Response:
    body = Failure(error="offset", detail=f"go on at {due}", request_id=request.state.request_id).model_dump()
    return JSONResponse(body | {"offset": due}, 409, {"Upload-Offset": str(due)} | incoming.CLOSE)
