"""The proxy before an engine that is away, breaks off or takes its time; and without a policy."""

import http.client
import json
import socketserver
import subprocess
import sys
import threading
from contextlib import suppress

import httpx
import pytest
import rules
from engine_proxy_process import IMAGE, PROXY, proxy
from test_engine_proxy_rules import description


def test_an_engine_that_is_down(tmp_path):
    with proxy(tmp_path, str(tmp_path / "nowhere.sock")) as running:
        for method, path in (("GET", "/_ping"), ("POST", "/containers/abc/stop"), ("GET", "/v1.41/containers/json")):
            status, message = running.ask(method, path)
            assert status == 503
            assert f"engine proxy: the Docker engine does not answer at {tmp_path}/nowhere.sock" in message
            assert "start it" in message


class Misbehaving(socketserver.StreamRequestHandler):
    """An engine whose containers are named after how it answers when their log is asked for."""

    def handle(self) -> None:
        target = self.rfile.readline().split()[1].decode()
        headers = http.client.parse_headers(self.rfile)
        self.server.asked.append((target, self.rfile.read(int(headers.get("Content-Length", 0)))))
        how = target.split("/")[2].removeprefix("id-of-")
        if target.endswith(("/json", "/create")):
            self.answer({"Id": f"id-of-{how}", "Config": {"Labels": {"spira.dag": "a"}}})
        elif how in ("half", "follow"):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        if how in ("silent", "follow") and target.endswith("/logs") and not self.rfile.read(1):
            self.server.gone.set()

    def answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


@pytest.fixture
def misbehaving(tmp_path):
    """(a proxy before such an engine, the engine: `asked`, and `gone` when it was hung up on)."""
    with socketserver.ThreadingUnixStreamServer(str(tmp_path / "engine.sock"), Misbehaving) as server:
        server.daemon_threads, server.asked, server.gone = True, [], threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with proxy(tmp_path, str(tmp_path / "engine.sock")) as running:
            yield running, server
        server.shutdown()


def test_an_engine_that_breaks_off(misbehaving):
    running, _ = misbehaving
    status, message = running.ask("GET", "/containers/mute/logs?stdout=1")
    assert (status, "the Docker engine broke off" in message) == (502, True)
    with pytest.raises(http.client.IncompleteRead):
        running.ask("GET", "/containers/half/logs?stdout=1")


@pytest.mark.parametrize("how", ["follow", "silent"])
def test_who_hangs_up_ends_the_request_to_the_engine(misbehaving, how):
    running, server = misbehaving
    with suppress(httpx.ReadTimeout), httpx.stream("GET", f"{running.url}/containers/{how}/logs", timeout=1) as answer:
        chunks = answer.iter_raw()
        assert next(chunks) == b"first"
        assert not server.gone.wait(0.5)
    assert server.gone.wait(5)
    # The label was looked for under the name that was given; the request went on under the id that was found.
    assert server.asked == [(f"/containers/{how}/json", b""), (f"/containers/id-of-{how}/logs", b"")]


def test_the_engine_gets_what_was_checked_and_nothing_as_it_came(misbehaving):
    running, server = misbehaving
    body = description() | {"Image": IMAGE}
    body["HostConfig"] |= {"Mounts": [], "NetworkMode": "none", "Memory": 1 << 26, "MemorySwap": 0, "ShmSize": 0}
    unsaid = {"Privileged": False, "Binds": [], "Later": None}
    sent = json.dumps(body | {"Later": 0, "HostConfig": body["HostConfig"] | unsaid}, indent=2)
    assert running.ask("POST", "/v1.41/containers/create", sent.encode())[0] == 200
    ((target, got),) = server.asked
    assert (target, json.loads(got)) == ("/v1.41/containers/create", rules.kept(body))


@pytest.mark.parametrize(("name", "value"), [("SPIRA_MAX_MEMORY", "much"), ("SPIRA_PROXY_PORT", "docker")])
def test_a_wrong_setting_ends_it_with_a_message(name, value):
    env = {"SPIRA_ALLOWED_IMAGES": "a", "SPIRA_MAX_MEMORY": "8g", "SPIRA_MAX_CPUS": "1"} | {name: value}
    trial = subprocess.run([sys.executable, PROXY], env=env, capture_output=True, text=True, timeout=30)
    assert trial.returncode == 1
    assert trial.stderr.startswith(f"engine proxy: {name} ")
