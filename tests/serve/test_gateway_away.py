"""The gateway where the model server fails: a stand-in that answers as told, then nobody at all."""

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import gateways
import pytest
import requests
from gateways import Gateway

from serve.client import Client, Unavailable
from serve.gateway import routes

pytestmark = pytest.mark.slow
IDENTITY = {"name": "spira", "version": "v1", "content": "c" * 64, "weights": "w" * 64}
GOOD = {"probability": 0.2, "calibrated": 0.2, "diagnosis": "negative", "warnings": [], "windows": [0.2]}
GOOD |= {"model": IDENTITY}


@dataclass
class StandIn:
    """What it answers next: (status, body) each; 0 breaks the connection off, 1 waits."""

    answers: list = field(default_factory=list)
    asked: list = field(default_factory=list)
    server: ThreadingHTTPServer | None = None
    url: str = ""
    ended: bool = False

    def end(self) -> None:
        """Nobody listens any more, and open connections break."""
        if not self.ended:
            self.ended = True
            self.server.shutdown()
            self.server.server_close()


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    told = StandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            told.asked.append((self.path, dict(self.headers)))
            status, body = told.answers.pop(0) if told.answers else (200, GOOD)
            if status == 0 or told.ended:
                return self.connection.shutdown(socket.SHUT_RDWR)
            if status == 1:
                time.sleep(body)
                status, body = 200, GOOD
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:  # of the management API: a renewal that changes nothing
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    told.server, told.url = server, f"http://127.0.0.1:{server.server_port}"
    yield told
    told.end()


@pytest.fixture(scope="module")
def gateway(stand_in, tmp_path_factory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("gateway")
    keys = home / "key_file.json"
    soon = "2999-01-01T00:00:00.1Z"
    keys.write_text(json.dumps({"inference": {"key": "token", "expiration time": soon}, "API": {"key": "api"}}))
    it = gateways.start(
        home, inference=stand_in.url, management=stand_in.url, keys=keys, answer_seconds=1, shadow_queue=1
    )
    yield it
    assert it.stop() == 0
    assert "Traceback" not in (home / "log").read_text()


@pytest.fixture(autouse=True)
def fresh(stand_in):
    stand_in.answers.clear()
    stand_in.asked.clear()


BAD_TOKEN = (400, {"code": 400, "type": "InvalidKeyException", "message": "..."})
DIED = {"type": "InternalServerException", "message": "Worker died."}  # with 500 or 507, as test_launch sees it


@pytest.mark.parametrize(
    ("answers", "status", "error"),
    [
        ([(500, {"error": "fault", "detail": "this recording could not be read", "model": IDENTITY})], 502, "model"),
        ([(200, GOOD | {"probability": 1.5})], 502, "model"),
        ([(200, GOOD | {"diagnosis": None})], 502, "model"),
        ([(200, b"no JSON")], 503, "model_server_busy"),
        ([(200, b"[]")], 503, "model_server_busy"),
        ([(422, {"error": "x", "detail": "y", "model": "not one"})], 502, "model"),
        ([(503, {"code": 503, "type": "ServiceUnavailableException"})], 503, "model_server_busy"),
        ([(404, {"code": 404, "type": "ModelNotFoundException"})], 503, "no_model"),
        ([(413, {"code": 413})], 413, "too_large"),
        ([(1, 1.6)], 503, "timeout"),
        ([(0, 0), (0, 0)], 503, "model_server"),
        ([BAD_TOKEN] * 4, 503, "model_server"),
        ([(507, DIED), (500, DIED)], 503, "model_server_busy"),
    ],
)
def test_what_the_model_server_does_wrong(gateway, stand_in, answers, status, error):
    stand_in.answers += answers
    answer = gateway.ask(b"a recording", headers={"X-Request-ID": "mine"})
    assert (answer.status_code, answer.json()["error"]) == (status, error), answer.text
    assert answer.json()["request_id"] == "mine"
    assert ("Retry-After" in answer.headers) == (status == 503)
    until(lambda: not stand_in.answers)
    assert gateway.ask(b"a recording").status_code == 200


@pytest.mark.parametrize("broken", [(0, 0), (500, DIED), (507, DIED)])
def test_what_broke_is_tried_again(gateway, stand_in, broken):
    stand_in.answers += [broken]
    assert gateway.ask(b"a recording").ok
    assert len(stand_in.asked) == 2


def test_what_the_model_server_is_told(gateway, stand_in):
    gateway.ask(b"a recording", headers={"X-Request-ID": "mine", "Cookie": "secret"})
    ((path, headers),) = stand_in.asked
    assert path == "/predictions/spira"
    assert headers["X-Request-ID"] == "mine"
    assert headers["Authorization"] == "Bearer token", "ours, not the client's"
    assert "Cookie" not in headers and "X-API-Key" not in headers


def test_a_slow_shadow_holds_nobody_up(gateway, stand_in):
    routes.change(gateway.home / "routes.json", "shadow", routes.Route(version="v2", share=1))
    try:
        started = gateway.ask(b"1")
        assert started.ok
        until(lambda: len(stand_in.asked) == 2)
        stand_in.answers += [(200, GOOD), (1, 0.9)]  # the next shadow is slow
        assert gateway.ask(b"2").ok
        until(lambda: len(stand_in.asked) == 4)
        assert [gateway.ask(b"3").status_code for _ in range(3)] == [200, 200, 200]
    finally:
        (gateway.home / "routes.json").unlink()
    until(lambda: gateway.series("shadow_total", outcome="dropped", version="v2") == 2)
    until(lambda: gateway.series("shadow_total", outcome="compared", version="v2") == 3)


def test_readiness(gateway, stand_in):
    time.sleep(1.1)  # what it knows is a second old at most
    stand_in.answers += [(422, {"error": "undecodable", "detail": "", "model": IDENTITY})]
    assert requests.get(gateway.url + "/readyz", timeout=5).json() == {"status": "ready"}
    assert requests.get(gateway.url + "/readyz", timeout=5).ok
    assert len(stand_in.asked) == 1, "asked once a second at most"
    time.sleep(1.1)
    stand_in.answers += [(404, {"code": 404})]
    assert requests.get(gateway.url + "/readyz", timeout=5).status_code == 503
    time.sleep(1.1)
    stand_in.answers += [(422, {"error": "undecodable", "detail": "", "model": IDENTITY})]
    assert requests.get(gateway.url + "/readyz", timeout=5).ok


def test_nobody_is_there(gateway, stand_in):
    """The last one: it ends the stand-in."""
    stand_in.end()
    answer = gateway.ask(b"a recording")
    assert (answer.status_code, answer.json()["error"]) == (503, "model_server")
    assert int(answer.headers["Retry-After"]) >= 1
    time.sleep(1.1)
    ready = requests.get(gateway.url + "/readyz", timeout=10)
    assert ready.status_code == 503 and "Retry-After" in ready.headers
    assert requests.get(gateway.url + "/healthz", timeout=5).json() == {"status": "alive"}
    with pytest.raises(Unavailable, match="model_server: the model server does not answer"):
        Client(gateway.url, gateway.key, tries=1).predict(b"a recording")
    (gateway.home / "key_file.json").unlink()  # as TorchServe does when it ends
    assert gateway.ask(b"a recording").status_code == 503
    with pytest.raises(Unavailable, match=r"no connection: http://127.0.0.1:9 does not answer \(ConnectionError\)"):
        Client("http://127.0.0.1:9", "key", tries=1).predict(b"a recording")


def until(found) -> None:
    deadline = time.monotonic() + 10
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)
