"""A real gateway process of the tests, on free ports of loopback."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import requests
from runs import free_ports

from serve.gateway import clients

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Gateway:
    """A running gateway; `key` is that of its client `ward`, which may ask without limit."""

    url: str
    metrics: str
    home: Path
    key: str
    process: subprocess.Popen[bytes]

    @property
    def predict(self) -> str:
        return f"{self.url}/v1/predict"

    def ask(self, content: bytes = b"", **more: object) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "audio/wav"} | more.pop("headers", {})
        return requests.post(self.predict, content, headers=headers, timeout=30, **more)

    def series(self, name: str, **labels: str) -> float:
        """The value of a metric, 0 where there is none yet."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        for line in requests.get(self.metrics, timeout=5).text.splitlines():
            if line.partition("{")[0].partition(" ")[0] == f"spira_gateway_{name}" and all(w in line for w in wanted):
                return float(line.split()[-1])
        return 0.0

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def start(home: Path, *, inference: str, management: str, keys: Path, **settings: object) -> Gateway:
    port, metrics_port = free_ports(2)
    key = clients.add(home / "clients.json", "ward", "100000/minute")
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPIRA_GATEWAY_")}
    env |= {"SPIRA_INFERENCE": inference, "SPIRA_MANAGEMENT": management, "SPIRA_KEYS": str(keys)}
    settings |= {"home": home, "port": port, "metrics_port": metrics_port}
    env |= {f"SPIRA_GATEWAY_{name.upper()}": str(value) for name, value in settings.items()}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve.gateway", "serve"], cwd=ROOT, env=env, stdout=log, stderr=log
        )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
    while True:
        try:
            if requests.get(f"{url}/healthz", timeout=1).ok:
                return Gateway(url, f"http://127.0.0.1:{metrics_port}/metrics", home, key, process)
        except requests.ConnectionError:
            assert process.poll() is None, (home / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the gateway did not start"
            time.sleep(0.1)
