"""The gateway in front of a real TorchServe that serves two versions: `v1` by default, `v2` when asked for."""

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import gateways
import pytest
import requests
import schemathesis
from gateways import Gateway
from hypothesis import HealthCheck, given, settings
from runs import archive_of, packaged, wav
from servers import Running

from serve import client as clients_of
from serve import torchserve as ts
from serve.client import Client
from serve.gateway import clients, routes
from serve.torchserve import Server

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]
MODEL, LIMIT, PLACES = "gate", 500_000, 4


@pytest.fixture(scope="module")
def served(torchserve: Running, tmp_path_factory: pytest.TempPathFactory) -> tuple[Server, str, str]:
    """TorchServe with two versions of a model: (server, the default one, the other)."""
    folder, server = tmp_path_factory.mktemp("gate"), replace(torchserve.server, name=MODEL)
    versions = []
    for seed in (1, 2):
        run, _, facts = packaged(folder, seed=seed)
        ts.register(server, archive_of(run), facts["version"], torchserve.store)
        versions.append(facts["version"])
    return server, *versions


@pytest.fixture(scope="module")
def gateway(served, tmp_path_factory) -> Iterator[Gateway]:
    it = begin(served[0], tmp_path_factory.mktemp("gateway"), max_bytes=LIMIT, body_seconds=2, in_flight=PLACES)
    yield it
    assert it.stop() == 0
    assert "Traceback" not in (it.home / "log").read_text()


def begin(server: Server, home: Path, **more: object) -> Gateway:
    return gateways.start(
        home, inference=server.inference, management=server.management, keys=server.keys, model=MODEL, **more
    )


@pytest.fixture(autouse=True)
def no_routes(request):
    yield
    if "gateway" in request.fixturenames:
        (request.getfixturevalue("gateway").home / "routes.json").unlink(missing_ok=True)


def refused(answer: requests.Response, status: int, error: str) -> dict:
    """Check the one shape of every refusal."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error", "detail", "request_id"}
    assert body["error"] == error
    assert body["detail"]
    assert body["request_id"] == answer.headers["X-Request-ID"]
    return body


def until(found):
    """What `found()` returns once it is true."""
    deadline = time.monotonic() + 20
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_each_way_of_sending_gives_torchserves_answer(gateway, served):
    content = wav(5.0, seed=3)
    theirs = ts.predict(served[0], content, windows=True).json()
    key = {"X-API-Key": gateway.key}
    ways = [
        gateway.ask(content),
        gateway.ask(content, headers={"Content-Type": "application/octet-stream; x=y"}),
        requests.post(gateway.predict, files={"audio": ("maria.wav", content)}, headers=key, timeout=30),
        requests.post(gateway.predict, json={"audio": base64.b64encode(content).decode()}, headers=key, timeout=30),
    ]
    fields = ("probability", "calibrated", "diagnosis", "warnings", "heard", "decision")
    for answer in ways:
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body.pop("request_id") == answer.headers["X-Request-ID"]
        assert body.pop("model") == {"version": served[1], "content": theirs["model"]["content"]}
        assert body == {name: theirs[name] for name in fields}
    assert gateway.ask(content, params={"windows": "true"}).json()["windows"] == theirs["windows"]


def test_a_request_id_is_taken_over_or_made(gateway):
    assert gateway.ask(wav(), headers={"X-Request-ID": "ward-7.42_a"}).json()["request_id"] == "ward-7.42_a"
    made = {
        gateway.ask(wav(), headers={"X-Request-ID": bad}).json()["request_id"] for bad in ("a b", "x" * 65, "é", "")
    }
    assert len(made) == 4
    assert all(len(one) == 32 for one in made)


def test_without_a_key_nothing_is_answered(gateway):
    for headers in ({}, {"X-API-Key": "spira_guessed"}, {"Authorization": "Basic eDp5"}):
        answer = requests.post(gateway.predict, wav(), headers=headers | {"Content-Type": "audio/wav"}, timeout=30)
        refused(answer, 401, "key")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    refused(gateway.ask(wav(), headers={"Authorization": "Bearer spira_guessed"}), 401, "key")


@pytest.mark.parametrize(
    ("content", "kind", "status", "error"),
    [
        (b"no sound", "audio/wav", 422, "undecodable"),
        (wav(0.1), "audio/wav", 422, "too_short"),
        (b"", "audio/wav", 422, "no_recording"),
        (b'{"half', "audio/wav", 422, "not_json"),
        (b"{", "application/json", 422, "not_json"),
        (b"[" * 100_000, "application/json", 422, "not_json"),
        (b'{"audio": "no base64!"}', "application/json", 422, "no_recording"),
        (b'{"audio": ["x"]}', "application/json", 422, "no_recording"),
        (b"[1]", "application/json", 422, "no_recording"),
        (b"x", "multipart/form-data", 422, "not_a_form"),
        (b"--b\r\n\r\nx", "multipart/form-data; boundary=b", 422, "not_a_form"),
        (b'--b\r\nContent-Disposition: form-data; name="audio"\r\n\r\nx\r\n--b--\r\n', "multipart/form-data; boundary=b", 422, "no_recording"),  # noqa: E501
        (b"x=y", "application/x-www-form-urlencoded", 415, "content_type"),
        (b"x", "text/plain", 415, "content_type"),
        (b"x", "", 415, "content_type"),
        (bytes(LIMIT + 1), "audio/wav", 413, "too_large"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told_why(gateway, content, kind, status, error):
    refused(gateway.ask(content, headers={"Content-Type": kind}), status, error)


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(gateway):
    sent = []

    def endless():
        while True:
            sent.append(65_536)
            yield bytes(65_536)

    refused(gateway.ask(endless()), 413, "too_large")
    assert sum(sent) < 40 * LIMIT  # what sockets hold is sent before the answer is read


def test_other_paths_methods_and_parameters(gateway):
    refused(requests.get(gateway.url + "/predictions/spira", timeout=5), 404, "not_found")
    answer = requests.get(gateway.predict, timeout=5)
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"
    refused(gateway.ask(wav(), params={"windows": "perhaps"}), 422, "parameter")


def test_who_sends_too_slowly_makes_room(gateway):
    other = clients.add(gateway.home / "clients.json", "other", "100/minute")
    with ExitStack() as open_ones:
        for _ in range(PLACES - 1):
            slow = open_ones.enter_context(socket.create_connection(("127.0.0.1", int(gateway.url.split(":")[-1]))))
            head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nX-API-Key: {gateway.key}\r\nContent-Type: audio/wav\r\n"
            slow.sendall(f"{head}Content-Length: 1000\r\n\r\nRIFF".encode())
        until(lambda: gateway.series("in_flight") == PLACES - 1)
        assert gateway.ask(wav(), headers={"Authorization": f"Bearer {other}"}).ok  # who is not slow finds a place
        shed = gateway.ask(wav())
        refused(shed, 503, "busy")
        assert int(shed.headers["Retry-After"]) >= 1
        slow.settimeout(10)
        assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
    until(lambda: gateway.series("in_flight") == 0)
    assert gateway.ask(wav()).ok


def test_who_hangs_up_costs_nothing(gateway):
    with socket.create_connection(("127.0.0.1", int(gateway.url.split(":")[-1]))) as gone:
        gone.sendall(f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nX-API-Key: {gateway.key}\r\n".encode())
        gone.sendall(b"Content-Type: audio/wav\r\nContent-Length: 1000\r\n\r\nRIFF")
        until(lambda: gateway.series("in_flight") == 1)
    until(lambda: gateway.series("errors_total", reason="cut_off") == 1)
    assert gateway.series("in_flight") == 0
    assert gateway.ask(wav()).ok


def test_each_client_has_its_own_rate(gateway):
    key = clients.add(gateway.home / "clients.json", "eager", "2/minute")
    answers = [gateway.ask(wav(), headers={"Authorization": f"Bearer {key}"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    refused(answers[2], 429, "rate")
    assert 1 <= int(answers[2].headers["Retry-After"]) <= 60
    assert gateway.ask(wav()).ok
    clients.remove(gateway.home / "clients.json", "eager")
    refused(gateway.ask(wav(), headers={"Authorization": f"Bearer {key}"}), 401, "key")


def test_a_token_that_somebody_else_renewed(gateway, served):
    assert gateway.ask(wav()).ok
    before = inference_key(served[0])
    renew(served[0])
    assert inference_key(served[0]) != before
    assert gateway.ask(wav()).ok


def test_a_token_is_renewed_before_it_expires_and_once_for_all(gateway, served):
    server, before = served[0], gateway.series("token_renewals_total")
    renew(server)  # the gateway's own is of no use now, so it reads the file again
    known = json.loads(server.keys.read_text())
    known["inference"]["expiration time"] = "2026-01-01T00:00:00.123456789Z"
    server.keys.write_text(json.dumps(known))
    with ThreadPoolExecutor(PLACES - 1) as pool:  # as many as one client may have in flight
        assert {answer.status_code for answer in pool.map(lambda _: gateway.ask(wav()), range(PLACES - 1))} == {200}
    assert inference_key(server) != known["inference"]["key"]
    assert gateway.series("token_renewals_total") == before + 1


def inference_key(server: Server) -> str:
    return json.loads(server.keys.read_text())["inference"]["key"]


def renew(server: Server) -> None:
    bearer = {"Authorization": f"Bearer {json.loads(server.keys.read_text())['API']['key']}"}
    requests.get(f"{server.management}/token?type=inference", headers=bearer, timeout=10).raise_for_status()


def test_the_canary_answers_its_clients(gateway, served):
    _, v1, v2 = served
    routes.change(gateway.home / "routes.json", "canary", routes.Route(version=v2, share=1))
    assert gateway.ask(wav()).json()["model"]["version"] == v2
    routes.change(gateway.home / "routes.json", "canary", routes.Route(version=v2, share=1e-9))
    assert gateway.ask(wav()).json()["model"]["version"] == v1


def test_a_canary_that_is_gone_costs_no_answer(gateway, served):
    routes.change(gateway.home / "routes.json", "canary", routes.Route(version="2026-01-01-gone", share=1))
    assert gateway.ask(wav()).json()["model"]["version"] == served[1]
    assert gateway.series("fallbacks_total", version="2026-01-01-gone") == 1


def test_the_shadow_is_compared_stored_and_never_returned(gateway, served):
    server, v1, v2 = served
    routes.change(gateway.home / "routes.json", "shadow", routes.Route(version=v2, share=1))
    content = wav(4.0, seed=5)
    answer = gateway.ask(content)
    assert answer.json()["model"]["version"] == v1
    (record,) = until(lambda: lines(gateway.home / "shadow.jsonl"))
    theirs = {version: ts.predict(server, content, version).json() for version in (v1, v2)}
    for name, version in (("answer", v1), ("shadow", v2)):
        expected = {field: theirs[version][field] for field in ("probability", "calibrated", "diagnosis")}
        assert record[name] == {"version": version} | expected
    assert record["request_id"] == answer.json()["request_id"]
    assert record["difference"] == theirs[v2]["probability"] - theirs[v1]["probability"]
    assert record["agree"] == (theirs[v1]["diagnosis"] == theirs[v2]["diagnosis"])
    assert set(record) == {"time", "request_id", "answer", "shadow", "difference", "agree"}
    assert v2 not in answer.text
    until(lambda: gateway.series("shadow_total", outcome="compared", version=v2) == 1)


def test_a_shadow_that_is_gone_costs_no_answer(gateway):
    before = lines(gateway.home / "shadow.jsonl")
    routes.change(gateway.home / "routes.json", "shadow", routes.Route(version="2026-01-01-gone", share=1))
    assert gateway.ask(wav()).ok
    until(lambda: gateway.series("shadow_total", outcome="failed") == 1)
    assert lines(gateway.home / "shadow.jsonl") == before


def test_every_answer_has_its_audit_line(gateway, served):
    log, content = gateway.home / "audit.jsonl", wav(level=0.003)
    before, known = len(lines(log)), ts.predict(served[0], content).json()
    requests.post(
        gateway.predict, files={"audio": ("maria-silva.wav", content)}, headers={"X-API-Key": gateway.key}, timeout=30
    ).raise_for_status()
    gateway.ask(b"no sound", headers={"X-Request-ID": "second"})
    gateway.ask(b"never asked of a model", headers={"Content-Type": "text/plain"})
    first, second = lines(log)[before:]
    fields = ("probability", "calibrated", "diagnosis", "warnings", "heard")
    common = {"client": "ward", "version": served[1], "content": known["model"]["content"]}
    assert {k: v for k, v in first.items() if k not in ("time", "request_id")} == {
        "status": 200, **common, **{name: known[name] for name in fields}
    }  # fmt: skip
    assert "quiet" in first["warnings"]
    assert {k: v for k, v in second.items() if k != "time"} == {
        "request_id": "second", "status": 422, "error": "undecodable", **common
    }  # fmt: skip
    assert "maria" not in log.read_text()
    assert base64.b64encode(content[:60]).decode() not in log.read_text()
    assert log.stat().st_mode & 0o077 == 0


def test_no_answer_without_its_audit_line(gateway):
    log = gateway.home / "audit.jsonl"
    log.rename(aside := log.with_suffix(".aside"))
    log.mkdir()
    try:
        refused(gateway.ask(wav()), 503, "audit")
    finally:
        log.rmdir()
        aside.rename(log)
    assert gateway.ask(wav()).ok


def test_metrics_carry_the_version(gateway, served):
    version = served[1]
    before = gateway.series("requests_total", version=version, status="200")
    gateway.ask(wav(level=0.003)).raise_for_status()
    assert gateway.series("requests_total", version=version, status="200") == before + 1
    for name in ("seconds_count", "queue_seconds_count", "model_seconds_count", "probability_count", "windows_total"):
        assert gateway.series(name, version=version) > 0, name
    assert gateway.series("warnings_total", version=version, warning="quiet") > 0
    assert gateway.series("errors_total", reason="undecodable", version=version) > 0
    assert gateway.series("errors_total", reason="key", version="none") > 0
    refused(requests.get(gateway.url + "/metrics", timeout=5), 404, "not_found")


def test_the_page_and_the_description(gateway):
    page = requests.get(gateway.url + "/docs", headers={"Host": "<script>"}, timeout=5)
    assert page.ok
    assert "<script" not in page.text
    api = requests.get(gateway.url + "/openapi.json", timeout=5).json()
    call = api["paths"]["/v1/predict"]["post"]
    assert set(call["responses"]) == {"200", "400", "401", "408", "413", "415", "422", "429", "502", "503"}
    assert {"HTTPBearer": []} in call["security"] and {"APIKeyHeader": []} in call["security"]
    for status in call["responses"]:
        assert status in page.text


def test_the_python_client(gateway, tmp_path):
    mine, file = Client(gateway.url, gateway.key), tmp_path / "a.wav"
    file.write_bytes(wav(5.0))
    answer = mine.predict(file, windows=True, request_id="mine")
    assert answer["request_id"] == "mine"
    assert answer == mine.predict(file.read_bytes(), windows=True, request_id="mine")
    assert len(answer["windows"]) > 1
    with pytest.raises(clients_of.Unusable, match=r"undecodable: not a WAV.* \(request \w+\)"):
        mine.predict(b"no sound")
    with pytest.raises(clients_of.NotAllowed, match="key: this key is not known"):
        Client(gateway.url, "wrong").predict(file)


def test_the_python_client_waits_as_long_as_it_is_told(gateway, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(clients_of.time, "sleep", lambda seconds: (pauses.append(seconds), time_passes(seconds)))
    time_passes = threading.Event().wait
    key = clients.add(gateway.home / "clients.json", "patient", "1/2second")
    mine = Client(gateway.url, key)
    assert mine.predict(wav())["probability"] == mine.predict(wav())["probability"]
    assert pauses and all(1 <= pause <= 3 for pause in pauses)
    slow = clients.add(gateway.home / "clients.json", "slow", "1/hour")
    pauses.clear()
    Client(gateway.url, slow).predict(wav())
    with pytest.raises(clients_of.Unavailable, match="rate: slow may ask 1 per 1 hour") as caught:
        Client(gateway.url, slow).predict(wav())
    assert caught.value.retry_after > clients_of.LONGEST_PAUSE
    assert pauses == [], "an hour is not waited for"


def test_whatever_its_own_description_allows(gateway):
    api = schemathesis.openapi.from_url(gateway.url + "/openapi.json")
    # The description allows any bytes as audio; the handler does not.
    skipped = schemathesis.checks.CHECKS.get_one("positive_data_acceptance")
    asked = set()

    for operation in (each.ok() for each in api.get_all_operations()):

        @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def probe(case) -> None:
            answer = case.call(headers={"X-API-Key": gateway.key}, timeout=30)
            case.validate_response(answer, excluded_checks=[skipped])
            assert answer.status_code < 500
            asked.add((case.method, case.path))

        probe()
    assert asked == {("POST", "/v1/predict"), ("GET", "/healthz"), ("GET", "/readyz")}


def test_a_stop_under_load_costs_no_answer(served, tmp_path):
    # six of these are more work than fits into the time before no more connections are taken
    it, content = begin(served[0], tmp_path, in_flight=16, drain_seconds=0.3), wav(100.0)
    routes.change(it.home / "routes.json", "shadow", routes.Route(version=served[2], share=0.5))
    statuses, over = [], threading.Event()

    def ask() -> None:
        while not over.is_set():  # a connection that breaks fails the test
            answer = it.ask(content)
            statuses.append(answer.status_code)
            if answer.headers.get("Connection") == "close":  # it is about to stop: whoever asks on asks elsewhere
                return

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask) for _ in range(6)]
        try:
            until(lambda: len(statuses) > 12)
            it.process.terminate()
            (answer,) = until(lambda: not_ready(it))
            refused(answer, 503, "draining")
            assert it.process.wait(30) == 0
        finally:
            over.set()
        for each in asking:
            each.result()
    assert set(statuses) == {200}
    assert len(lines(it.home / "audit.jsonl")) == len(statuses)


def not_ready(it: Gateway) -> list[requests.Response]:
    answer = requests.get(it.url + "/readyz", timeout=5)
    return [] if answer.ok else [answer]
