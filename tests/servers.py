"""A real TorchServe of the tests, on free ports of loopback."""

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import requests
from runs import free_ports

from bench.workers import workers
from serve.torchserve import Server


@dataclass
class Running:
    """A TorchServe process of the tests."""

    server: Server
    store: Path
    home: Path
    ports: list[int]
    workers: int = 1  # of each version: a second one would only take the time of the tests
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        names = ("inference", "management", "metrics", "grpc-inference", "grpc-management")
        options = [part for name, port in zip(names, self.ports, strict=True) for part in (f"--{name}", str(port))]
        command = [sys.executable, "-m", "serve.launch", "--store", str(self.store), "--home", str(self.home)]
        options += ["--workers", str(self.workers)]
        with (self.home.parent / "torchserve.log").open("ab") as log:
            self.process = subprocess.Popen(command + options, stdout=log, stderr=log)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.home.parent / "torchserve.log").read_text()[-2000:]
            try:
                requests.get(f"{self.server.inference}/ping", timeout=1)
                if self.server.keys and self.server.keys.exists():
                    return
            except requests.RequestException:
                pass
            time.sleep(0.2)
        raise AssertionError("TorchServe did not start")

    def stop(self, sign: int = signal.SIGTERM) -> None:
        if self.process:
            self.process.send_signal(sign)
            self.process.wait(60)
            self.process = None

    def worker_pids(self) -> set[int]:
        """Python processes that serve models of this server, found by the sockets in its folder."""
        return workers(self.home)


def running(root: Path) -> Running:
    ports = free_ports(5)
    home, store = root / "home", root / "models"
    server = Server(f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", home / "key_file.json")
    return Running(server, store, home, ports)
