"""The HTTP side: `POST /v1/recordings` and what belongs to it. The collector's page is the app's (serve/app/pages)."""

import asyncio
import itertools
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

import access.settings
from access import failures, trail
from access.accounts import Role
from access.web import Person, attach, router, who
from collect import ledger, receive
from collect.days import Day, overview
from collect.facts import WORDS, Facts, Label, Wrong
from collect.facts import read as read_facts
from collect.form import BODY, read_form
from collect.hearing import Unusable
from collect.landing import settle
from collect.ledger import Declined, State
from collect.pseudonym import read_key
from collect.receive import Left, Receipt
from collect.settings import Settings
from serve.gateway import page
from serve.gateway.problem import Failure, Problem
from serve.gateway.recording import receive as read_body
from spira_train.outcome import StepError, TryAgain
from spira_train.store import Lake

log = logging.getLogger("spira.collect")
_STATUS = {"unknown": 404, "other_subject": 409, "withdrawn": 409}
_REFUSALS = {
    400: "the body is cut off, or cannot be read",
    401: "nobody is logged in",
    403: "without the role, or perhaps a forged request",
    404: "there is no recording with this id",
    408: "the recording arrived too slowly",
    409: "the recording came for another subject, or its subject has withdrawn",
    413: "the recording is too large",
    415: "not a form",
    422: "not a usable recording, or facts that cannot be taken; `error` names the reason",
    503: "the lake cannot take it now; see Retry-After",
}
_SUMMARY = """Takes recordings in, with what is known of them. Nothing that names a person is kept: the subject leaves
as a pseudonym, fields that name people are refused. Log in at `/v1/session` of the app, or send a machine's key."""

_EXAMPLE = """curl -H "Authorization: Bearer $KEY" -F recording=@sentence.wav \\
     -F 'facts={"consent": true, "consent_training": true, "subject": "1234", "label": "control"}' \\
     {base}/v1/recordings"""


class Known(BaseModel):
    """A recording, without its sound."""

    id: str
    state: State
    label: Label | None
    received_at: str
    subject: str = Field(description="pseudonym")
    site: str | None
    sentence: str | None


class Labelled(BaseModel):
    """A label and the reason for it."""

    label: Label
    why: Annotated[str, Field(max_length=WORDS, description="no names")] = ""


class Leaving(BaseModel):
    """Who withdraws: as given with the recordings, or the pseudonym."""

    subject: Annotated[str, Field(min_length=1, max_length=200)]


@dataclass
class Collection:
    """What lives as long as the process."""

    settings: Settings
    lake: Lake
    key: bytes
    reading: asyncio.Semaphore
    settling: threading.Lock = field(default_factory=threading.Lock)
    tickets: "itertools.count[int]" = field(default_factory=itertools.count)
    settled: dict[str, int] = field(default_factory=dict)

    def settle(self, day: str) -> None:
        """Make landing agree with the ledger; many at once need one settling, not one each."""
        ticket = next(self.tickets)
        with self.settling:
            if self.settled.get(day, -1) > ticket:
                return  # one that began after this one's event
            begun = next(self.tickets)
            try:
                settle(self.lake, day)
            except StepError as error:  # the recording is safe; the day is settled at the next event, or start
                log.error("%s", error)
            else:
                self.settled[day] = begun

    def note(self, person: Person, what: str, **facts: str | int | bool | None) -> None:
        """A line of the trail."""
        trail.note(self.settings.trail_file, person.name, what, **facts)


def create(settings: Settings, shared: access.settings.Settings) -> FastAPI:
    """The application; raises `Mistake` where key or database cannot be used."""
    app = FastAPI(
        title="SPIRA collection", version="1", description=_SUMMARY, lifespan=_lifespan, docs_url=None, redoc_url=None
    )
    attach(app, shared)
    lake = Lake(settings.lake)
    app.state.collection = Collection(
        settings, lake, read_key(settings.pseudonym_key), asyncio.Semaphore(settings.at_once)
    )
    app.add_exception_handler(Unusable, _told(422))
    app.add_exception_handler(Wrong, _told(422))
    app.add_exception_handler(Declined, _told(409))
    app.add_exception_handler(StepError, _step)
    known: dict[int | str, dict[str, Any]] = {
        status: {"model": Failure, "description": text} for status, text in _REFUSALS.items()
    }
    routes: list[tuple[str, str, Callable[..., Any], Any, str]] = [
        ("POST", "/v1/recordings", take, Receipt, "Send a recording and what is known of it"),
        ("GET", "/v1/recordings", listed, list[Known], "What came on a day"),
        ("POST", "/v1/recordings/{id}/label", labelled, Receipt, "Say, or correct, what a recording is"),
        ("POST", "/v1/subjects/withdraw", withdrawn, Left, "Take a subject's recordings away for ever"),
        ("GET", "/v1/days", days, list[Day], "How much came on each day"),
    ]
    for method, path, endpoint, model, summary in routes:
        more: dict[str, Any] = {}
        if endpoint is take:
            more = {"status_code": 201, "openapi_extra": {"requestBody": BODY}}
        app.add_api_route(
            path, endpoint, methods=[method], response_model=model, summary=summary, responses=known, **more
        )
    app.include_router(router())
    app.add_api_route("/healthz", alive, methods=["GET"], summary="Whether the service is alive")
    app.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False)
    return app


Collector = Annotated[Person, Depends(who(Role.collector))]
Labeller = Annotated[Person, Depends(who(Role.collector, Role.clinician))]
Remover = Annotated[Person, Depends(who(Role.collector, Role.engineer))]
Reader = Annotated[Person, Depends(who(Role.collector, Role.clinician, Role.engineer))]


async def take(request: Request, response: Response, person: Collector) -> Receipt:
    """A form with the file `recording` and `facts`, a JSON object. 200 where it had come before."""
    collection: Collection = request.app.state.collection
    settings = collection.settings
    async with collection.reading:  # who waits here costs no memory: its body is not read yet
        body = await read_body(request, settings.max_bytes, settings.body_seconds)
        recording, given = await read_form(body, request.headers)
        del body
        kept = await run_in_threadpool(_keep, collection, person, recording, given)
    response.status_code = 200 if kept.again else 201
    return kept


def _keep(collection: Collection, person: Person, recording: bytes, given: dict[str, Any]) -> Receipt:
    facts: Facts = read_facts(given)
    kept = receive.receive(collection.lake, collection.key, recording, facts, person.name)
    if not kept.again:
        collection.note(person, "received", id=kept.id, day=kept.day)
    collection.settle(kept.day)
    return kept


def listed(
    request: Request, person: Reader, day: Annotated[str | None, Query(description="YYYY-MM-DD; empty: today")] = None
) -> list[Known]:
    """Ids and states, no sound."""
    try:
        chosen = receive.valid_day(day or ledger.today())
    except ValueError as error:
        raise Problem(422, "day", str(error)) from None
    found = ledger.recordings(request.app.state.collection.lake, chosen).values()
    return [
        Known(
            id=one.id, state=one.state, label=one.label, received_at=one.at, subject=one.subject,
            site=one.facts.get("site"), sentence=one.facts.get("sentence"),
        )
        for one in found
    ]  # fmt: skip


def labelled(request: Request, person: Labeller, id: str, given: Labelled) -> Receipt:
    """The last label wins; every one is kept."""
    collection: Collection = request.app.state.collection
    kept = receive.label(collection.lake, id, given.label, person.name, given.why)
    if not kept.again:
        collection.note(person, "labelled", id=kept.id, label=given.label)
    collection.settle(kept.day)
    return kept


def withdrawn(request: Request, person: Remover, given: Leaving) -> Left:
    """The recordings leave the lake and what was derived of them; nothing of this subject is taken any more."""
    collection: Collection = request.app.state.collection
    gone = receive.withdraw(collection.lake, collection.key, given.subject, person.name)
    collection.note(person, "withdrawn", subject=gone.subject, recordings=gone.recordings)
    return gone


def days(request: Request, person: Reader) -> list[Day]:
    """Newest first."""
    return overview(request.app.state.collection.lake)


async def alive() -> dict[str, str]:
    """Says nothing of the lake."""
    return {"status": "alive"}


async def docs(request: Request) -> Response:
    """What this API takes and answers, for people."""
    return page.render(
        request.app.openapi(),
        str(request.base_url).rstrip("/"),
        example=_EXAMPLE,
        models=("Receipt", "Known", "Day", "Left", "Failure"),
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    collection: Collection = app.state.collection
    await run_in_threadpool(receive.recover, collection.lake)
    task = None
    if collection.settings.nats:
        from collect import labels

        task = asyncio.create_task(labels.follow(collection.settings))
    yield
    if task:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _told(status: int) -> Callable[[Request, Exception], Response]:
    def handler(request: Request, error: Exception) -> Response:
        reason = str(getattr(error, "reason", "refused"))
        said = str(error) if isinstance(error, Wrong) else str(getattr(error, "detail", error))
        return failures.failure(request, _STATUS.get(reason, status), reason, said)

    return handler


def _step(request: Request, error: Exception) -> Response:
    log.error("%s: %s", request.state.request_id, error)
    if isinstance(error, TryAgain):
        return failures.failure(
            request, 503, "lake", "the lake cannot take it now; send it again later", {"Retry-After": "30"}
        )
    return failures.failure(request, 500, "lake", "the lake cannot be written; its operator has to look at it")
