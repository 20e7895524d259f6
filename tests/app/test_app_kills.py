"""Each part is killed while 1,000 requests are under way: every one is answered, once, and none is lost."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest
from inference_parts import announced, ended, new_id, parts, running, until
from sqlalchemy import func, select

from access.database import engine, sessions
from serve.app.records import DeadLetter, Inference

pytestmark = pytest.mark.slow
REQUESTS = 1_000


def batched(items, size: int):
    items = list(items)
    return [items[start : start + size] for start in range(0, len(items), size)]


def persistent(client: httpx.Client, id: str, content: bytes) -> None:
    """As a phone does it: the same id again until it is accepted."""
    deadline = time.monotonic() + 240
    while True:
        with suppress(httpx.HTTPError):
            if client.put(f"/v1/inferences/{id}", content=content, timeout=5).status_code == 202:
                return
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_thousand_requests_survive_kills_of_every_part(tmp_path):
    with running(parts(tmp_path)) as it:
        contents = {new_id(): f"recording {number}".encode() for number in range(REQUESTS)}
        seen: dict[str, dict] = {}

        def watch() -> None:
            """The first answer of each that can be seen."""
            opened, deadline = engine(it.places["SPIRA_DATABASE"]), time.monotonic() + 240
            while len(seen) < REQUESTS:
                assert time.monotonic() < deadline, f"{REQUESTS - len(seen)} without an answer"
                time.sleep(0.2)
                with sessions(opened, reading=True)() as session:
                    for row in session.scalars(select(Inference).where(Inference.state.in_(("completed", "error")))):
                        seen.setdefault(row.id, row.answer)
            opened.dispose()

        with it.client() as client, ThreadPoolExecutor(16) as pool:
            watcher = pool.submit(watch)
            kills, batches = it.all * 2, batched(contents.items(), REQUESTS // 8)
            sent = []
            for part, batch in zip(kills, batches, strict=True):
                sent += [pool.submit(persistent, client, *one) for one in batch]
                time.sleep(0.5)
                part.kill()
                time.sleep(0.3)
                part.start()
            for one in (*sent, watcher):
                one.result()
        time.sleep(5)  # whatever is delivered again has come by now
        opened = engine(it.places["SPIRA_DATABASE"])
        with sessions(opened, reading=True)() as session:
            rows = {row.id: row for row in session.scalars(select(Inference))}
            assert session.scalar(select(func.count()).select_from(DeadLetter)) == 0
        opened.dispose()
        assert set(rows) == set(contents) == set(seen) == set(it.asked)
        assert {row.state for row in rows.values()} == {"completed"}
        for id, row in rows.items():
            assert row.answer["request_id"] == id
            assert row.answer == seen[id], "an answer was replaced by another one"
        assert len({row.answer["number"] for row in rows.values()}) == REQUESTS
        for part in (it.app, it.worker):
            assert "Traceback" not in part.log


def test_requests_survive_a_nats_that_forgets_everything(tmp_path):
    with running(parts(tmp_path, redrive_seconds=2), without=("worker",)) as it, it.client() as client:
        ids = [new_id() for _ in range(5)]
        for id in ids:
            client.put(f"/v1/inferences/{id}", content=id.encode())
        until(lambda: it.series("published_total") >= len(ids))
        it.nats.kill()
        shutil.rmtree(tmp_path / "nats")
        it.nats.start()
        it.worker.start()
        for id in ids:
            assert ended(client, id)["state"] == "completed"
        assert it.series("redriven_total") >= len(ids)


def test_without_nats_recordings_are_accepted_and_answered_once_it_is_there(tmp_path):
    with running(parts(tmp_path), without=("nats",)) as it, it.client() as client:
        id, whole = new_id(), announced(b"whole")
        client.post("/v1/inferences", json=whole)
        it.app.kill()
        (tmp_path / "home/uploads").mkdir(parents=True, exist_ok=True)
        (tmp_path / "home/uploads" / whole["id"]).write_bytes(b"whole")  # as a kill after the last byte leaves it
        it.app.start()
        assert client.put(f"/v1/inferences/{id}", content=b"early").status_code == 202
        assert client.get("/readyz").json()["messages"] == "waiting for NATS"
        it.nats.start()
        assert ended(client, id)["state"] == "completed"
        assert ended(client, whole["id"])["state"] == "completed"


def test_a_recording_that_kills_its_worker_becomes_a_dead_letter(tmp_path):
    settings = {"pauses": "0.1", "answer_seconds": 0.9, "ack_seconds": 1}
    with running(parts(tmp_path, **settings), without=("worker",)) as it, it.client() as client:
        id = new_id()
        client.put(f"/v1/inferences/{id}", content=b"slow recording")
        for tries in (1, 2):
            it.worker.start()
            until(lambda: len(it.asked) >= tries, 30)  # noqa: B023 - called at once
            it.worker.kill()
        it.worker.start()
        done = ended(client, id)
        assert (done["state"], done["error"]) == ("error", "no_answer")
        with it.client("operator") as operator:
            (letter,) = operator.get("/v1/dead").json()
        assert (letter["error"], letter["tries"]) == ("worker_died", 3)
        assert len(it.asked) == 2
