"""The proxy before the engine as a process of its own."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import docker

PROXY = Path(__file__).resolve().parents[2] / "images/engine_proxy/proxy.py"
MARK = f"spira-proxy-test-{os.getpid()}"
IMAGE, LAKE, KEYS = f"{MARK}:latest", f"{MARK}-lake", f"{MARK}-keys"


class Running:
    """A proxy process: its address, what it wrote, and a client of the SDK for it."""

    def __init__(self, process: subprocess.Popen, url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log
        self._client: docker.APIClient | None = None

    @property
    def client(self) -> docker.APIClient:
        """The SDK, as Airflow uses it; made when the engine is asked first."""
        self._client = self._client or docker.APIClient(base_url=self.url.replace("http", "tcp"), version="auto")
        return self._client

    def ask(self, method: str, path: str, body: object = None, headers: dict | None = None) -> tuple[int, str]:
        """Send the path exactly as it is; (status, message of the answer)."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=20)
        connection.putrequest(method, path, skip_accept_encoding=True)
        raw = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        for name, value in {"Content-Length": str(len(raw)), **(headers or {})}.items():
            connection.putheader(name, value)
        connection.endheaders(raw)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, json.loads(text)["message"] if text.startswith('{"message"') else text


@contextmanager
def proxy(folder: Path, engine_socket: str, **settings: str):
    """A proxy on a free port, until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        "SPIRA_ENGINE_SOCKET": engine_socket,
        "SPIRA_PROXY_HOST": "127.0.0.1",
        "SPIRA_PROXY_PORT": str(port),
        "SPIRA_ALLOWED_IMAGES": IMAGE,
        "SPIRA_ALLOWED_VOLUMES": f"{LAKE},{KEYS}:ro,{folder}",
        "SPIRA_MAX_MEMORY": "128m",
        "SPIRA_MAX_CPUS": "1",
        **settings,
    }
    log = folder / f"proxy-{port}.log"
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, PROXY], env=env, stdout=output, stderr=output)
    try:
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield Running(process, f"http://127.0.0.1:{port}", log)
    finally:
        process.terminate()
        process.wait(10)
