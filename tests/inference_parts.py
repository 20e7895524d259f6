"""The parts of the inference app as real processes of the tests, on free ports of loopback: each may be killed."""

import hashlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from fake_gateway import KEY
from runs import free_ports

from access import accounts
from access.database import engine, migrate, sessions

ROOT = Path(__file__).resolve().parents[1]
NATS = Path(sys.executable).with_name("nats-server")


@dataclass
class Part:
    """A process that can be killed and started again. ready: an address that answers when it is up."""

    name: str
    command: list[str]
    folder: Path
    ready: str
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text()

    def start(self) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("SPIRA_")} | self.env
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(self.command, cwd=ROOT, env=env, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(self.ready, timeout=1)
                return
            except httpx.HTTPError:
                assert self.process.poll() is None, self.log[-2000:]
                assert time.monotonic() < deadline, f"{self.name} did not start"
                time.sleep(0.05)

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    def end(self, sign: int = signal.SIGTERM) -> int:
        assert self.process
        self.process.send_signal(sign)
        code = self.process.wait(30)
        self.process = None
        return code


@dataclass
class Parts:
    """All of them, in one folder. keys: account -> its key."""

    folder: Path
    url: str
    metrics: str
    nats: Part
    gateway: Part
    app: Part
    worker: Part
    keys: dict[str, str]
    places: dict[str, str]

    @property
    def all(self) -> list[Part]:
        return [self.nats, self.gateway, self.app, self.worker]

    @property
    def asked(self) -> list[str]:
        """The ids that the fake gateway was asked about."""
        file = self.folder / "asked"
        return file.read_text().split() if file.exists() else []

    def client(self, account: str = "nurse") -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.keys[account]}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)

    def series(self, name: str, **labels: str) -> float:
        """The value of a metric of the app, 0 where there is none yet."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        for line in httpx.get(self.metrics, timeout=5).text.splitlines():
            if line.partition("{")[0].partition(" ")[0] == f"spira_app_{name}" and all(w in line for w in wanted):
                return float(line.split()[-1])
        return 0.0


def parts(folder: Path, *, gateway: str = "", gateway_key: str = KEY, collect: str = "", **settings: object) -> Parts:
    """Nothing is started yet. gateway, collect: the addresses of real ones."""
    ports = free_ports(6)
    nats_port, gateway_port, app_port, metrics_port, worker_port, health = ports
    (folder / "gateway.key").write_text(gateway_key)
    database = f"sqlite:///{folder}/app.db"
    keys = {}
    opened = engine(database)
    migrate(opened)
    with sessions(opened).begin() as session:
        for name, role in (
            ("nurse", "clinician"),
            ("doctor", "clinician"),
            ("operator", "engineer"),
            ("gatherer", "collector"),
        ):
            keys[name] = accounts.add(session, name, [role]) or ""
    opened.dispose()
    fake = [sys.executable, str(ROOT / "tests/fake_gateway.py"), str(gateway_port), str(folder / "asked")]
    env = {
        "SPIRA_NATS": f"nats://127.0.0.1:{nats_port}",
        "SPIRA_GATEWAY": gateway or f"http://127.0.0.1:{gateway_port}",
        "SPIRA_GATEWAY_KEY": str(folder / "gateway.key"),
        "SPIRA_LAKE": str(folder / "lake"),
        "SPIRA_APP_AUDIO": str(folder / "inferences"),
        "SPIRA_APP_ANSWER_SECONDS": "3",
        "SPIRA_APP_ACK_SECONDS": "4",
        "SPIRA_APP_PAUSES": "0.2,0.5,1,2,2,2,2,2",
    } | {f"SPIRA_APP_{name.upper()}": str(value) for name, value in settings.items()}
    own = {
        "SPIRA_DATABASE": database,
        "SPIRA_COLLECT": collect or "http://127.0.0.1:9",
        "SPIRA_TRAIL": str(folder / "trail"),
        "SPIRA_PSEUDONYM_KEY": str(folder / "pseudonym.key"),
        "SPIRA_APP_HOME": str(folder / "home"),
        "SPIRA_APP_PORT": str(app_port),
        "SPIRA_APP_METRICS_PORT": str(metrics_port),
    }
    url, run = f"http://127.0.0.1:{app_port}", [sys.executable, "-m", "serve.app"]
    listens = ["-a", "127.0.0.1", "-p", str(nats_port), "-m", str(health), "-js", "-sd", str(folder / "nats")]
    worker_metrics = {"SPIRA_APP_METRICS_PORT": str(worker_port)}
    return Parts(
        folder,
        url,
        f"http://127.0.0.1:{metrics_port}/metrics",
        Part("nats", [str(NATS), *listens], folder, f"http://127.0.0.1:{health}/healthz"),
        Part("gateway", fake, folder, f"http://127.0.0.1:{gateway_port}/"),
        Part("app", [*run, "serve"], folder, f"{url}/healthz", env | own),
        Part("worker", [*run, "worker"], folder, f"http://127.0.0.1:{worker_port}/metrics", env | worker_metrics),
        keys,
        env | own,
    )


@contextmanager
def running(it: Parts, *, without: tuple[str, ...] = ()) -> Iterator[Parts]:
    """Start all parts but those named; end them in order."""
    try:
        for part in it.all:
            if part.name not in without:
                part.start()
        yield it
    finally:
        for part in reversed(it.all):
            if part.process:
                part.end()


def new_id() -> str:
    return secrets.token_hex(16)


def announced(content: bytes, id: str = "", **facts: object) -> dict:
    """The body of `POST /v1/inferences`."""
    sha256 = hashlib.sha256(content).hexdigest()
    return {"id": id or new_id(), "bytes": len(content), "sha256": sha256, "facts": facts}


def ended(client: httpx.Client, id: str, seconds: float = 20) -> dict:
    """The inference once it is completed or an error."""
    deadline = time.monotonic() + seconds
    while True:
        now = client.get(f"/v1/inferences/{id}").raise_for_status().json()
        if now["state"] in ("completed", "error"):
            return now
        assert time.monotonic() < deadline, now
        time.sleep(0.05)


def until(found, seconds: float = 20):
    """What `found()` returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value
