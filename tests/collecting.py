"""The collection as its tests use it: recordings, facts, and a real service on a free port."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from deliveries import voice, wav
from runs import free_ports

from access import accounts
from access.database import engine, migrate, sessions
from collect import facts, ledger
from collect.receive import Receipt, receive
from spira_train.store import Lake, digest_bytes

ROOT = Path(__file__).resolve().parents[1]
KEY = b"k" * 32


def sound(seed: int = 0, seconds: float = 0.6) -> bytes:
    """A recording like no other."""
    return wav(voice(seed, seconds))


def known(**more: Any) -> dict[str, Any]:
    """What is sent with a recording that can be trained on at once."""
    return {"consent": True, "consent_training": True, "subject": "ana", "label": "patient", "age": 40} | more


def take(lake: Lake, seed: int = 0, day: str | None = None, **more: Any) -> Receipt:
    return receive(lake, KEY, sound(seed), facts.read(known(**more)), "nurse", day=day)


def rows(lake: Lake, day: str) -> list[dict[str, str]]:
    """metadata.csv of a landed day; empty where there is none."""
    if not lake.exists("landing", day, "metadata.csv"):
        return []
    return list(csv.DictReader(io.StringIO(lake.read("landing", day, "metadata.csv").decode())))


def agrees(lake: Lake) -> None:
    """Ledger, landing and waiting tell the same, and nothing half-written is left."""
    for day in ledger.days(lake):
        found = ledger.recordings(lake, day).values()
        by_state = {state: sorted(one.file for one in found if one.state == state) for state in ("landed", "waiting")}
        assert sorted(row["file_path"] for row in rows(lake, day)) == by_state["landed"]
        assert sorted(f for f in lake.files("landing", day) if f != "metadata.csv") == by_state["landed"]
        assert sorted(lake.files("collection", day, "waiting")) == by_state["waiting"]
        for one in found:
            if one.state != "withdrawn":
                place = ("landing", day) if one.state == "landed" else ("collection", day, "waiting")
                assert digest_bytes(lake.read(*place, one.file)) == one.digest
    assert not [path for path in lake.fs.find(lake.path()) if path.endswith(".partial")]


@dataclass
class Service:
    """A running `python -m collect serve`."""

    url: str
    home: Path
    keys: dict[str, str]  # role -> a machine's key
    env: dict[str, str]
    process: subprocess.Popen[bytes]

    @property
    def lake(self) -> Lake:
        return Lake(str(self.home / "lake"))

    def ask(self, method: str, path: str, role: str = "collector", **more: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.keys[role]}"} | more.pop("headers", {})
        return requests.request(method, self.url + path, headers=headers, timeout=60, **more)

    def send(self, content: bytes, role: str = "collector", **more: Any) -> requests.Response:
        form = {"recording": ("name-of-a-person.wav", content), "facts": (None, facts_json(**more))}
        return self.ask("POST", "/v1/recordings", role, files=form)

    def log(self) -> str:
        return (self.home / "log").read_text()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def start(self) -> None:
        """Start it (again) and wait until it answers."""
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "collect", "serve"], cwd=ROOT, env=self.env, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                if requests.get(f"{self.url}/healthz", timeout=1).ok:
                    return
            except requests.ConnectionError:
                assert self.process.poll() is None, self.log()[-2000:]
                assert time.monotonic() < deadline, "the service did not start"
                time.sleep(0.1)


def facts_json(**more: Any) -> str:
    return json.dumps(known(**more))


def environment(home: Path, **settings: str) -> dict[str, str]:
    """What the service and the command are told."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPIRA_")}
    places = {"LAKE": home / "lake", "TRAIL": home / "trail", "PSEUDONYM_KEY": home / "pseudonym.key"}
    env |= {f"SPIRA_{name}": str(place) for name, place in places.items()}
    return env | {"SPIRA_DATABASE": f"sqlite:///{home}/app.db", "PYTHONPATH": str(ROOT)} | settings


def service(home: Path, **settings: str) -> Service:
    """Start a service with a machine's account for every role."""
    opened = engine(f"sqlite:///{home}/app.db")
    migrate(opened)
    with sessions(opened).begin() as session:
        keys = {
            role: str(accounts.add(session, f"the-{role}", [role])) for role in ("collector", "clinician", "engineer")
        }
    opened.dispose()
    (port,) = free_ports(1)
    env = environment(home, SPIRA_COLLECT_PORT=str(port), **settings)
    running = Service(f"http://127.0.0.1:{port}", home, keys, env, None)  # type: ignore[arg-type]
    running.start()
    return running
