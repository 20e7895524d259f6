"""The app as one FastAPI application: sessions, uploads, answers, pages, the way to the collection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from access import settings as access_settings
from access import web
from collect.pseudonym import read_key
from serve.app import background, inferences, proxy, uploads
from serve.app.settings import Settings
from serve.app.state import App
from serve.gateway import page
from serve.gateway.problem import Failure, away

_SUMMARY = """Takes recordings of a spoken sentence, asks the model by messages, and answers with how probable
respiratory insufficiency is. Not a medical device.

An upload may be broken off and gone on with; sent twice, it is one inference. `completed` and `error` are final."""
_EXAMPLE = """curl -H "Authorization: Bearer $KEY" -X PUT --data-binary @sentence.wav \\
     {base}/v1/inferences/$(openssl rand -hex 16)
curl -N -H "Authorization: Bearer $KEY" {base}/v1/inferences/$ID/events"""


def create(settings: Settings, access: access_settings.Settings) -> FastAPI:
    """The application; brings the database up to date. Raises `Mistake`."""
    api = FastAPI(
        title="SPIRA inference app",
        version="1",
        description=_SUMMARY,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
    )
    opened = web.attach(api, access)
    api.state.app = App(settings, opened.write, opened.read, read_key(settings.pseudonym_key))
    api.include_router(web.router())
    api.include_router(uploads.router())
    api.include_router(inferences.router())
    api.state.http = proxy.client()
    api.include_router(proxy.router(settings.collect, api.state.http))
    api.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False)
    api.add_api_route("/healthz", alive, methods=["GET"], summary="Whether the app is alive")
    api.add_api_route(
        "/readyz",
        ready,
        methods=["GET"],
        summary="Whether recordings are accepted",
        responses={503: {"model": Failure, "description": "the database is away"}},
    )
    if find_spec("serve.app.pages"):
        from serve.app.pages import pages

        api.include_router(pages.router(settings))
    return api


async def docs(request: Request) -> Response:
    """What this API takes and answers, for people."""
    return page.render(request.app.openapi(), str(request.base_url).rstrip("/"), _EXAMPLE, ("Shown", "Failure"))


async def alive() -> dict[str, str]:
    """Says nothing of others."""
    return {"status": "alive"}


def ready(request: Request) -> Response:
    """Without NATS recordings are accepted all the same, and wait."""
    app: App = request.app.state.app
    try:
        with app.read() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError:
        raise away("the database is away") from None
    return JSONResponse({"status": "ready", "messages": "connected" if app.connected else "waiting for NATS"})


@asynccontextmanager
async def _lifespan(api: FastAPI) -> AsyncIterator[None]:
    app: App = api.state.app
    app.begin()
    tasks = [asyncio.create_task(background.messages(app)), asyncio.create_task(background.sweeps(app))]
    yield
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task
    await api.state.http.aclose()
    api.state.access.engine.dispose()
