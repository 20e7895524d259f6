"""The app, NATS, a worker and a gateway that answers at once: from an upload to an answer, and what may go wrong."""

import json
import os
import re
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from inference_parts import Parts, announced, ended, new_id, parts, running, until

from access.database import engine, migrate

pytestmark = pytest.mark.slow
LIMIT = 400_000
# Log-in has tests of its own; FastAPI describes what a stream answers in one media type, refusals included.
ELSEWHERE = {(method, "/v1/session") for method in ("GET", "POST", "DELETE")} | {("GET", "/v1/inferences/{id}/events")}


@pytest.fixture(scope="module")
def it(tmp_path_factory) -> Iterator[Parts]:
    with running(parts(tmp_path_factory.mktemp("app"), max_bytes=LIMIT, pauses="0.05,0.1", body_seconds=3)) as started:
        yield started
        assert [part.end() for part in (started.app, started.worker)] == [0, 0]
    for part in (started.app, started.worker):
        assert "Traceback" not in part.log
        assert "127.0.0.1" not in part.log


@pytest.fixture
def nurse(it) -> Iterator[httpx.Client]:
    with it.client() as client:
        yield client


def refused(answer: httpx.Response, status: int, error: str) -> dict:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert {"error", "detail", "request_id"} <= set(body)
    assert body["error"] == error
    return body


def test_a_whole_recording_is_answered_and_again_changes_nothing(it, nurse):
    content, id = os.urandom(20_000), new_id()
    sent = nurse.put(f"/v1/inferences/{id}", content=content)
    assert (sent.status_code, sent.json()["state"]) == (202, "processing")
    done = ended(nurse, id)
    assert done["answer"]["request_id"] == id
    assert done["answer"]["windows"] == [0.7, 0.7]
    again = nurse.put(f"/v1/inferences/{id}", content=content)
    assert (again.status_code, again.json()["state"]) == (202, "completed")
    refused(nurse.put(f"/v1/inferences/{id}", content=content + b"x"), 409, "taken")
    assert it.asked.count(id) == 1
    assert nurse.get("/v1/inferences").json()[0]["id"] == id


def test_an_upload_goes_on_where_it_was_broken_off(nurse):
    content = os.urandom(300_000)
    new = announced(content, age=61, sex="F")
    first = nurse.post("/v1/inferences", json=new)
    assert (first.status_code, first.json()["offset"]) == (201, 0)
    place = f"/v1/inferences/{new['id']}/audio"
    sent = nurse.patch(place, content=content[:100_000], headers={"Upload-Offset": "0"})
    assert (sent.status_code, sent.json()["offset"]) == (200, 100_000)
    body = refused(nurse.patch(place, content=content, headers={"Upload-Offset": "7"}), 409, "offset")
    assert body["offset"] == 100_000
    assert nurse.head(place).headers["Upload-Offset"] == "100000"
    again = nurse.post("/v1/inferences", json=new)
    assert (again.status_code, again.json()["offset"]) == (200, 100_000)
    last = nurse.patch(place, content=content[100_000:], headers={"Upload-Offset": "100000"})
    assert (last.status_code, last.json()["state"]) == (202, "processing")
    assert ended(nurse, new["id"])["facts"] == {"age": 61, "sex": "F", "consent_training": False}
    # the answer to the last piece was lost: it is sent again
    once_more = nurse.patch(place, content=content[100_000:], headers={"Upload-Offset": "100000"})
    assert (once_more.status_code, once_more.json()["state"]) == (202, "completed")
    assert nurse.head(place).headers["Upload-Offset"] == "300000"


def test_a_connection_that_breaks_keeps_what_came(it, nurse):
    content = os.urandom(200_000)
    new = announced(content)
    nurse.post("/v1/inferences", json=new)

    def broken() -> Iterator[bytes]:
        yield content[:50_000]
        until(lambda: nurse_too.head(place).headers["Upload-Offset"] == "50000")
        raise ConnectionError

    place = f"/v1/inferences/{new['id']}/audio"
    with it.client() as nurse_too, pytest.raises(ConnectionError):
        nurse.patch(place, content=broken(), headers={"Upload-Offset": "0", "Content-Length": "200000"})
    came = int(nurse.head(place).headers["Upload-Offset"])
    assert came == 50_000
    nurse.patch(place, content=content[came:], headers={"Upload-Offset": str(came)})
    assert ended(nurse, new["id"])["state"] == "completed"


def test_a_newer_request_ends_an_older_one_that_hangs(it, nurse):
    content = os.urandom(100_000)
    new = announced(content)
    nurse.post("/v1/inferences", json=new)
    place, go, said = f"/v1/inferences/{new['id']}/audio", threading.Event(), []

    def slow() -> Iterator[bytes]:
        yield content[:10_000]
        go.wait(10)
        yield content[10_000:]

    def older() -> None:
        with it.client() as client:
            said.append(client.patch(place, content=slow(), headers={"Upload-Offset": "0"}))

    thread = threading.Thread(target=older)
    thread.start()
    until(lambda: nurse.head(place).headers["Upload-Offset"] == "10000")
    nurse.patch(place, content=content[10_000:60_000], headers={"Upload-Offset": "10000"})
    go.set()
    thread.join()
    refused(said[0], 409, "superseded")
    assert nurse.patch(place, content=content[60_000:], headers={"Upload-Offset": "60000"}).status_code == 202
    assert ended(nurse, new["id"])["state"] == "completed"


def test_what_is_not_as_announced_is_refused(nurse):
    content = os.urandom(1000)
    new = announced(content)
    nurse.post("/v1/inferences", json=new)
    place = f"/v1/inferences/{new['id']}/audio"
    refused(nurse.patch(place, content=content + b"x", headers={"Upload-Offset": "0"}), 413, "too_large")
    assert nurse.head(place).headers["Upload-Offset"] == "0"
    refused(nurse.patch(place, content=b"x" * 1000, headers={"Upload-Offset": "0"}), 422, "digest")
    assert nurse.patch(place, content=content, headers={"Upload-Offset": "0"}).status_code == 202
    refused(nurse.post("/v1/inferences", json=new | {"sha256": "0" * 64}), 409, "taken")
    refused(nurse.post("/v1/inferences", json=announced(b"x") | {"bytes": LIMIT + 1}), 413, "too_large")
    refused(nurse.put(f"/v1/inferences/{new_id()}", content=b"x" * (LIMIT + 1)), 413, "too_large")
    refused(nurse.put(f"/v1/inferences/{new_id()}", content=b""), 422, "no_recording")
    refused(nurse.put("/v1/inferences/maria", content=b"x"), 422, "field")
    refused(nurse.get(f"/v1/inferences/{new_id()}"), 404, "unknown")


def test_a_body_that_comes_too_slowly_is_ended_and_kept(nurse):
    content = os.urandom(1000)
    new = announced(content)
    nurse.post("/v1/inferences", json=new)

    def slow() -> Iterator[bytes]:
        yield content[:400]
        time.sleep(4)
        yield content[400:]

    place = f"/v1/inferences/{new['id']}/audio"
    refused(nurse.patch(place, content=slow(), headers={"Upload-Offset": "0"}), 408, "too_slow")
    assert nurse.head(place).headers["Upload-Offset"] == "400"


@pytest.mark.parametrize(
    ("facts", "error"),
    [
        ({"name": "Maria"}, "field"),
        ({"site": "maria@example.org"}, "personal_data"),
        ({"device": "+55 11 98765-4321"}, "personal_data"),
        ({"age": 200}, "field"),
        ({"consent_training": True}, "field"),
    ],
)
def test_facts_that_name_a_person_or_cannot_be_are_refused_without_repeating_them(nurse, facts, error):
    body = refused(nurse.post("/v1/inferences", json=announced(b"x", **facts)), 422, error)
    assert "maria" not in json.dumps(body).lower()
    assert "98765" not in json.dumps(body)


def test_an_inference_is_its_accounts_alone_and_needs_a_role(it, nurse):
    id = new_id()
    nurse.put(f"/v1/inferences/{id}", content=b"mine")
    with it.client("doctor") as doctor, it.client("operator") as operator:
        refused(doctor.get(f"/v1/inferences/{id}"), 404, "unknown")
        refused(doctor.put(f"/v1/inferences/{id}", content=b"mine"), 409, "taken")
        refused(doctor.get("/v1/dead"), 403, "role")
        refused(operator.get(f"/v1/inferences/{id}"), 403, "role")
        assert operator.get("/v1/live").status_code == 200
    refused(httpx.get(f"{it.url}/v1/inferences"), 401, "session")


def events(client: httpx.Client, id: str) -> list[dict]:
    with client.stream("GET", f"/v1/inferences/{id}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        text = "".join(stream.iter_text())
    assert set(re.findall(r"^event: (\w+)$", text, re.MULTILINE)) == {"state"}
    return [json.loads(line) for line in re.findall(r"^data: (.*)$", text, re.MULTILINE)]


def test_events_tell_each_state_and_end_with_the_answer(nurse):
    id = new_id()
    nurse.put(f"/v1/inferences/{id}", content=b"slow " + os.urandom(100))
    told = events(nurse, id)
    assert [one["state"] for one in told] == ["processing", "completed"]
    assert told[-1] == nurse.get(f"/v1/inferences/{id}").json()
    assert [one["state"] for one in events(nurse, id)] == ["completed"]
    refused(nurse.get(f"/v1/inferences/{new_id()}/events"), 404, "unknown")


def test_the_models_refusal_is_told_in_its_own_word(nurse):
    id = new_id()
    nurse.put(f"/v1/inferences/{id}", content=b"refuse me")
    done = ended(nurse, id)
    assert (done["state"], done["error"]) == ("error", "too_short")
    assert done["detail"] == "there is too little to hear"


@pytest.mark.parametrize("word", ["busy", "broken"])
def test_no_answer_after_all_tries_is_a_dead_letter_that_can_be_sent_again(it, nurse, word):
    id = new_id()
    nurse.put(f"/v1/inferences/{id}", content=f"{word} {id}".encode())
    done = ended(nurse, id)
    assert (done["state"], done["error"]) == ("error", "no_answer")
    assert it.asked.count(id) == 3
    with it.client("operator") as operator:
        (letter,) = [one for one in operator.get("/v1/dead").json() if one["id"] == id]
        assert (letter["tries"], letter["error"]) == (3, {"busy": "busy", "broken": "model"}[word])
        again = operator.post(f"/v1/dead/{id}/retry")
        assert (again.status_code, again.json()["state"]) == (202, "processing")
        assert "facts" not in again.json()
        assert ended(nurse, id)["error"] == "no_answer"
        assert it.asked.count(id) == 6
        letters = [one for one in operator.get("/v1/dead?all=true").json() if one["id"] == id]
        assert [one.get("retried_by") for one in letters] == ["operator", None]
        # whatever was wrong is mended
        (file,) = (it.folder / "inferences").rglob(id)
        file.write_bytes(b"a recording")
        operator.post(f"/v1/dead/{id}/retry")
        assert ended(nurse, id)["state"] == "completed"
        assert [one for one in operator.get("/v1/dead").json() if one["id"] == id] == []
        refused(operator.post(f"/v1/dead/{id}/retry"), 409, "answered")
        refused(operator.post(f"/v1/dead/{new_id()}/retry"), 404, "unknown")
    assert f'"retried_inference", "inference": "{id}"' in (it.folder / "trail/trail.jsonl").read_text()


def test_two_hundred_uploads_at_once_are_all_answered(it):
    from concurrent.futures import ThreadPoolExecutor

    contents = {new_id(): os.urandom(100_000) for _ in range(200)}
    limits = httpx.Limits(max_connections=200)
    with ThreadPoolExecutor(200) as pool, it.client() as client:
        client._transport = httpx.HTTPTransport(limits=limits)
        sent = list(pool.map(lambda one: client.put(f"/v1/inferences/{one[0]}", content=one[1]), contents.items()))
        assert {answer.status_code for answer in sent} == {202}
        for id in contents:
            assert ended(client, id, 60)["answer"]["request_id"] == id
    for id, content in contents.items():
        assert next((it.folder / "inferences").rglob(id)).read_bytes() == content
    assert list((it.folder / "home/uploads").glob("*.put")) == []


def test_it_says_that_it_is_ready_and_what_its_api_is(it, nurse):
    before = it.series("received_total")
    nurse.put(f"/v1/inferences/{new_id()}", content=b"one more")
    until(lambda: httpx.get(f"{it.url}/readyz").json() == {"status": "ready", "messages": "connected"})
    page = httpx.get(f"{it.url}/docs")
    assert page.status_code == 200
    assert "/v1/inferences/{id}/audio" in page.text
    assert "<script" not in page.text
    assert it.series("nats_connected") == 1
    assert it.series("received_total") == before + 1
    assert httpx.get(f"{it.url}/").status_code == 200  # the nurse's page


def test_the_collection_is_reached_through_the_app_or_said_to_be_away(it, nurse):
    refused(nurse.get("/collect/v1/days"), 503, "collection")
    refused(nurse.get("/collect/v1/../healthz"), 404, "not_found")


def test_whatever_its_own_description_allows(it):
    api = schemathesis.openapi.from_url(f"{it.url}/openapi.json").exclude(path=[path for _, path in ELSEWHERE])
    # The description allows any recording, facts and reasons; ids must be known, digests right, texts name nobody.
    skipped = schemathesis.checks.CHECKS.get_one("positive_data_acceptance")
    asked, key = set(), {"Authorization": f"Bearer {it.keys['nurse']}"}

    for operation in (each.ok() for each in api.get_all_operations()):

        @settings(max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def probe(case) -> None:
            answer = case.call(headers=key, timeout=30)
            case.validate_response(answer, excluded_checks=[skipped])
            assert answer.status_code < 500
            asked.add((case.method, case.path))

        probe()
    assert (
        asked
        == {(method.upper(), path) for path, ways in api.raw_schema["paths"].items() for method in ways} - ELSEWHERE
    )


def test_models_and_migrations_agree(tmp_path):
    from alembic import command

    from access.database import configuration

    opened = engine(f"sqlite:///{tmp_path}/app.db")
    migrate(opened)
    with opened.begin() as connection:
        command.check(configuration(connection))
