"""The API of the app as the pages see it, in memory and at a test's command: what is slow, broken or down when.

The tests of the app itself use the real one; a page has to live through states that no test can provoke there.
`python tests/fake_app.py` serves it for a look.
"""

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from runs import free_ports

from serve.app.pages.pages import router

WINDOWS = [0.41, 0.55, 0.68, 0.74, 0.81, 0.77, 0.69]
ANSWER: dict[str, Any] = {
    "probability": 0.664,
    "calibrated": 0.78,
    "diagnosis": "positive",
    "warnings": [],
    "heard": {"seconds": 9.4, "rms_dbfs": -24.1, "snr_db": 18.7, "bandwidth_hz": 7906.25},
    "model": {"version": "2026-11-05-7a7d4e72", "content": "7a7d4e72b4cf6476"},
    "windows": WINDOWS,
    "decision": {"threshold": 0.5, "band": 0.12},
    "window_seconds": 4.0,
    "step_seconds": 1.0,
}
# version -> (n, and accuracy, sensitivity, specificity, each with its interval)
LIVE = {
    "2026-11-05-7a7d4e72": (84, (0.881, 0.795, 0.934), (0.9, 0.77, 0.96), (0.864, 0.733, 0.936)),
    "2026-10-29-1c02b9e4": (131, (0.824, 0.75, 0.88), (0.85, 0.74, 0.92), (0.8, 0.69, 0.88)),
    "2026-11-12-55ad4a4c": (11, (0.727, 0.434, 0.903), (0.8, 0.376, 0.964), (0.667, 0.3, 0.903)),
}


def now() -> str:
    return datetime.now(UTC).isoformat()


@dataclass
class Fake:
    """What the server knows, and how it behaves."""

    roles: list[str] = field(default_factory=lambda: ["clinician", "collector", "engineer"])
    inferences: dict[str, dict[str, Any]] = field(default_factory=dict)
    audio: dict[str, bytearray] = field(default_factory=dict)
    announced: list[str] = field(default_factory=list)  # ids, at each POST
    result: dict[str, Any] = field(default_factory=lambda: {"answer": ANSWER})  # or {"error", "detail"}
    thinks: float = 0.2  # seconds until an answer; below 0: never
    piece: float = 0.0  # seconds that a piece of an upload takes
    lists: float = 0.0  # seconds that the list of the latest takes
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)  # path's beginning -> (status, word)
    events: bool = True
    logins: set[str] = field(default_factory=set)
    recordings: list[dict[str, Any]] = field(default_factory=list)
    subjects: dict[str, str] = field(default_factory=dict)
    withdrawn: list[str] = field(default_factory=list)
    dead: list[dict[str, Any]] = field(default_factory=list)
    live: dict[str, Any] = field(default_factory=dict)
    labels: list[dict[str, Any]] = field(default_factory=list)
    posted: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    @property
    def received(self) -> bytes:
        """The one recording that was sent."""
        (content,) = self.audio.values()
        return bytes(content)


def problem(status: int, error: str, detail: str = "said for programs", **more: Any) -> Response:
    return JSONResponse({"error": error, "detail": detail, "request_id": "f" * 32} | more, status)


def create(fake: Fake) -> FastAPI:
    app = FastAPI()
    app.include_router(router())
    app.middleware("http")(_guard(fake))
    _session(app, fake)
    _inferences(app, fake)
    _collect(app, fake)

    @app.get("/v1/dead")
    def dead() -> Any:
        return fake.dead

    @app.post("/v1/dead/{id}/retry", status_code=202)
    def retry(id: str) -> Any:
        fake.dead = [one for one in fake.dead if one["id"] != id]
        return {"id": id, "state": "processing"}

    @app.get("/v1/live")
    def live() -> Any:
        return fake.live

    return app


def _guard(fake: Fake) -> Any:
    async def guard(request: Request, go: Any) -> Any:
        path = request.url.path
        for start, (status, word) in fake.refuse.items():
            if path.startswith(start):
                return problem(status, word)
        api = path.startswith(("/v1/", "/collect/v1/")) and path != "/v1/session"
        if api and request.cookies.get("spira_session") not in fake.logins:
            return problem(401, "session")
        if api and request.method != "GET" and request.headers.get("X-CSRF-Token") != "token":
            return problem(403, "csrf")
        return await go(request)

    return guard


def _session(app: FastAPI, fake: Fake) -> None:
    me = {"name": "demo", "csrf": "token"}

    @app.post("/v1/session")
    async def log_in(request: Request, response: Response) -> Any:
        given = await request.json()
        if given["password"] != "right":
            return problem(401, "credentials")
        fake.logins.add("cookie")
        response.set_cookie("spira_session", "cookie", httponly=True, samesite="strict")
        return me | {"roles": fake.roles}

    @app.get("/v1/session")
    def who(request: Request) -> Any:
        known = request.cookies.get("spira_session") in fake.logins
        return me | {"roles": fake.roles} if known else problem(401, "session")

    @app.delete("/v1/session", status_code=204)
    def log_out() -> None:
        fake.logins.clear()


def _inferences(app: FastAPI, fake: Fake) -> None:
    def shown(id: str) -> dict[str, Any]:
        row = fake.inferences[id]
        if row["state"] == "processing" and 0 <= fake.thinks < time.monotonic() - row["_done"]:
            row |= fake.result | {"state": "completed" if "answer" in fake.result else "error"}
        return {name: value for name, value in row.items() if not name.startswith("_")}

    @app.post("/v1/inferences", status_code=201)
    async def begin(request: Request, response: Response) -> Any:
        new = await request.json()
        fake.announced.append(new["id"])
        fake.posted.append(new)
        if known := fake.inferences.get(new["id"]):
            if known["_new"]["sha256"] != new["sha256"]:
                return problem(409, "taken")
            response.status_code = 200
        else:
            fake.inferences[new["id"]] = {"id": new["id"], "state": "uploading", "created_at": now(), "_new": new}
            fake.audio[new["id"]] = bytearray()
        return shown(new["id"]) | {"offset": len(fake.audio[new["id"]])}

    @app.patch("/v1/inferences/{id}/audio")
    async def piece(id: str, request: Request, response: Response) -> Any:
        await asyncio.sleep(fake.piece)
        body, kept, row = await request.body(), fake.audio[id], fake.inferences[id]
        if int(request.headers["Upload-Offset"]) != len(kept):
            return problem(409, "offset", offset=len(kept))
        kept += body
        if len(kept) == row["_new"]["bytes"]:
            if hashlib.sha256(kept).hexdigest() != row["_new"]["sha256"]:
                return problem(422, "digest")
            row |= {"state": "processing", "_done": time.monotonic()}
            response.status_code = 202
        return shown(id) | {"offset": len(kept)}

    @app.get("/v1/inferences")
    def latest() -> Any:
        time.sleep(fake.lists)
        return [shown(id) for id in reversed(fake.inferences)]

    @app.get("/v1/inferences/{id}")
    def one(id: str) -> Any:
        return shown(id) if id in fake.inferences else problem(404, "unknown")

    @app.get("/v1/inferences/{id}/events")
    def events(id: str) -> Response:
        if not fake.events:
            return problem(503, "busy")

        async def stream() -> AsyncIterator[str]:
            told = ""
            while told not in ("completed", "error"):
                record = shown(id)
                if record["state"] != told:
                    told = record["state"]
                    yield f"event: state\ndata: {json.dumps(record)}\n\n"
                await asyncio.sleep(0.05)

        return StreamingResponse(stream(), media_type="text/event-stream")

    @app.post("/v1/inferences/{id}/label")
    async def label(id: str, request: Request) -> Any:
        given = await request.json()
        fake.labels.append(given | {"id": id})
        fake.inferences[id]["label"] = given["label"]
        return shown(id)


def _collect(app: FastAPI, fake: Fake) -> None:
    @app.post("/collect/v1/recordings", status_code=201)
    async def take(request: Request, response: Response) -> Any:
        form = await request.form()
        facts, content = json.loads(str(form["facts"])), await form["recording"].read()  # type: ignore[union-attr]
        if "@" in facts.get("site", ""):
            return problem(422, "personal_data", "site: looks like an e-mail address")
        id, day = hashlib.sha256(content).hexdigest()[:32], now()[:10]
        again = any(one["id"] == id for one in fake.recordings)
        state = "landed" if facts.get("label") and facts["consent_training"] else "waiting"
        if not again:
            fake.subjects[id] = facts["subject"]
            one = {"id": id, "state": state, "label": facts.get("label"), "received_at": now(), "subject": "pseudonym"}
            fake.recordings.append(one | {"site": facts.get("site"), "sentence": facts.get("sentence")})
            fake.posted.append(facts)
        response.status_code = 200 if again else 201
        return {"id": id, "day": day, "digest": id * 2, "state": state, "again": again}

    @app.get("/collect/v1/recordings")
    def listed(day: str) -> Any:
        return fake.recordings if day == now()[:10] else []

    @app.post("/collect/v1/recordings/{id}/label")
    async def label(id: str, request: Request) -> Any:
        given = await request.json()
        for one in fake.recordings:
            if one["id"] == id:
                one["label"] = given["label"]
        fake.labels.append(given | {"id": id})
        return {"id": id}

    @app.post("/collect/v1/subjects/withdraw")
    async def withdraw(request: Request) -> Any:
        subject = (await request.json())["subject"]
        gone = [one for one in fake.recordings if fake.subjects.get(one["id"]) == subject]
        for one in gone:
            one["state"] = "withdrawn"
        fake.withdrawn.append(subject)
        return {"subject": "pseudonym", "days": [], "recordings": len(gone)}

    @app.get("/collect/v1/days")
    def days() -> Any:
        return []


def full() -> Fake:
    """A server on which something has happened."""
    fake, at = Fake(), now()
    for version, (n, *shares) in sorted(LIVE.items()):
        named = [dict(zip(("value", "low", "high"), share, strict=True)) for share in shares]
        fake.live[version] = {"n": n} | dict(zip(("accuracy", "sensitivity", "specificity"), named, strict=True))
    fake.dead = [
        {"id": "5f0c2e9a" * 4, "error": "model_server", "detail": "no model answers", "tries": 5, "at": at},
        {"id": "81d3b7aa" * 4, "error": "odd_word", "detail": "the gateway said 418", "tries": 5, "at": at},
    ]
    return fake


@contextmanager
def served(fake: Fake, port: int = 0) -> Any:
    """The address of a server that runs meanwhile."""
    port = port or free_ports(1)[0]
    server = uvicorn.Server(uvicorn.Config(create(fake), port=port, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


if __name__ == "__main__":
    with served(full(), 8093) as url:
        print(url)
        threading.Event().wait()
