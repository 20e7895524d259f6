"""What becomes of an inference: asked for once, waited for, labelled later; dead letters; how right the models were."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from access import trail
from access.accounts import Role
from access.web import Person, who
from collect.facts import Wrong, harmless
from serve.app import live, records, retention
from serve.app.live import Accuracy
from serve.app.records import COMPLETED, ERROR, DeadLetter, Shown, shown
from serve.app.state import App
from serve.app.uploads import REFUSALS, Clinician, Id
from serve.gateway.problem import Failure, Problem

Engineer = Annotated[Person, Depends(who(Role.engineer))]
Anyone = Annotated[Person, Depends(who())]
LOOK = 5.0  # seconds between two looks of somebody who waits, where nothing was told
LONGEST = 900.0  # seconds of waiting; then the browser asks again, with a session that still holds


class Later(BaseModel):
    """A diagnosis that became known later."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    label: Literal["patient", "control"]
    why: str = Field("", max_length=500, description="how it is known; nothing that names a person")


class Dead(BaseModel):
    """A request that got no answer. id: of the inference."""

    id: str
    error: str = Field(description="what the last try met")
    detail: str
    tries: int
    at: datetime
    retried_at: datetime | None = None
    retried_by: str | None = None


def router() -> APIRouter:
    """The routes of all that is asked after an upload."""
    made = APIRouter(prefix="/v1", tags=["inferences"], responses=REFUSALS)
    ways: list[tuple[str, Any, str, dict[str, Any]]] = [
        ("/inferences", latest, "Your latest inferences", {"response_model": list[Shown]}),
        ("/inferences/{id}", one, "One inference", {"response_model": Shown}),
        ("/inferences/{id}/events", events, "Wait for the answer", {"response_class": EventSourceResponse}),
        ("/dead", dead, "Requests without an answer", {"response_model": list[Dead]}),
        ("/live", accuracy, "How right the models were", {"response_model": dict[str, Accuracy]}),
    ]
    for path, call, summary, more in ways:
        made.add_api_route(path, call, methods=["GET"], summary=summary, response_model_exclude_none=True, **more)
    gone: dict[int | str, dict[str, Any]] = {410: {"model": Failure, "description": "the recording was deleted"}}
    for path, call, status, summary in (
        ("/inferences/{id}/label", label, 200, "Enter a diagnosis that became known later"),
        ("/dead/{id}/retry", retry, 202, "Send a dead letter's request again"),
    ):
        made.add_api_route(
            path,
            call,
            methods=["POST"],
            status_code=status,
            summary=summary,
            response_model=Shown,
            response_model_exclude_none=True,
            responses=gone,
        )
    return made


def latest(request: Request, person: Clinician, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> list[Shown]:
    """Newest first, your own alone."""
    app: App = request.app.state.app
    with app.read() as session:
        return [shown(row) for row in records.latest(session, person.name, limit)]


def one(request: Request, person: Clinician, id: Id) -> Shown:
    """Its state, and its answer once there is one."""
    app: App = request.app.state.app
    with app.read() as session:
        return shown(records.mine(session, id, person.name))


Mine = Annotated[Shown, Depends(one)]  # refuses before a stream has begun


async def events(request: Request, first: Mine) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events `state`, each with the inference; the last one says `completed` or `error`."""
    app: App = request.app.state.app
    now, waited = first, 0.0
    yield _event(now)
    while now.state not in (COMPLETED, ERROR) and waited < LONGEST:
        with app.watching(first.id) as changed:
            seen = await run_in_threadpool(_again, app, first.id)
            if seen == now:
                await changed(LOOK)
                waited += LOOK
                continue
        if seen is None:
            return  # withdrawn meanwhile
        now = seen
        yield _event(now)


def _event(now: Shown) -> ServerSentEvent:
    return ServerSentEvent(event="state", data=now.model_dump(mode="json", exclude_none=True))


def _again(app: App, id: str) -> Shown | None:
    with app.read() as session:
        row = session.get(records.Inference, id)
        return shown(row) if row else None


def label(request: Request, person: Clinician, id: Id, later: Later) -> Shown:
    """The last one counts, every one is kept. With consent the recording is trained on from now on."""
    app: App = request.app.state.app
    try:
        why = harmless("why", later.why)
    except Wrong as wrong:
        raise Problem(422, wrong.reason, str(wrong)) from None
    with app.write.begin() as session:
        row = records.mine(session, id, person.name)
        if row.state not in (COMPLETED, ERROR):
            raise Problem(409, "unfinished", f"{id} is {row.state}; wait until it has ended")
        records.enter_label(session, row, later.label, why, person.name)
        _trail(request, person, "labelled_inference", id, later.label)
    app.wake()
    retention.measure(app)
    return shown(row)


def dead(
    request: Request, person: Engineer, all: Annotated[bool, Query(description="those sent again as well")] = False
) -> list[Dead]:
    """The oldest first, 500 at most."""
    app: App = request.app.state.app
    asked = select(DeadLetter).order_by(DeadLetter.number).limit(500)
    if not all:
        asked = asked.where(DeadLetter.retried_at.is_(None))
    with app.read() as session:
        return [_dead(letter) for letter in session.scalars(asked)]


def _dead(letter: DeadLetter) -> Dead:
    facts = {name: getattr(letter, name) for name in Dead.model_fields if name != "id"}
    return Dead(id=letter.inference_id, **facts)


def retry(request: Request, person: Engineer, id: Id) -> Shown:
    """It is `processing` again; whoever waits for it is told when it is answered."""
    app: App = request.app.state.app
    with app.write.begin() as session:
        row = records.retry(session, id, person.name)
        _trail(request, person, "retried_inference", id)
    app.wake()
    return Shown(id=row.id, state="processing", created_at=row.created_at)  # who runs the system sees no facts


def accuracy(request: Request, person: Anyone) -> dict[str, Accuracy]:
    """By version, from the diagnoses entered later; not a random choice of patients, so no test."""
    app: App = request.app.state.app
    with app.read() as session:
        return live.compute(session)


def _trail(request: Request, person: Person, what: str, id: str, label: str | None = None) -> None:
    facts = {"label": label} if label else {}
    trail.note(request.app.state.access.settings.trail_file, person.name, what, inference=id, **facts)
