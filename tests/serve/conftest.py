"""A real TorchServe and a real MLflow, each started once, on free ports of loopback; tiny runs to put into them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import soundfile
import torch
from safetensors.torch import save

from serve.torchserve import Server
from spira_train import inference, package
from spira_train.audio import as_float, decode
from spira_train.config import Config
from spira_train.model import build
from spira_train.step import perform
from spira_train.store import digest_file, local_lake

LIMITS = {"min_seconds": 0.5, "max_seconds": 120, "silence_dbfs": -60, "max_clipped": 0.02}


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wav(seconds: float = 2.0, seed: int = 0, level: float = 0.1, rate: int = 16_000) -> bytes:
    """A noisy tone as the bytes of a WAV file."""
    rng = np.random.default_rng(seed)
    time_axis = np.arange(int(seconds * rate)) / rate
    sound = level * (np.sin(2 * np.pi * (200 + 40 * seed) * time_axis) + 0.3 * rng.standard_normal(len(time_axis)))
    file = Path(os.environ["PYTEST_WAV_FOLDER"]) / f"{os.getpid()}.wav"
    soundfile.write(file, sound, rate, subtype="PCM_16")
    return file.read_bytes()


@pytest.fixture(scope="session", autouse=True)
def _wav_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["PYTEST_WAV_FOLDER"] = str(tmp_path_factory.mktemp("wav"))


def make_run(folder: Path, seed: int = 0, partition: str = "2026-11-05") -> tuple[Path, Config]:
    """A run with a finished `train/` and a blessed `validate/`, as those steps leave them; random weights."""
    torch.set_num_threads(1)
    run, config = folder / f"{partition}-{seed:08d}", Config(partition=partition, seed=seed)

    def train(out: Path) -> dict[str, Any]:
        torch.manual_seed(seed)
        hyper = {"name": "spira_small", "frames": 401, "coefficients": 40, "dropout": 0.0}
        (out / "model.safetensors").write_bytes(save(build(**hyper).state_dict()))
        description = {"network": hyper, "features": config.features.model_dump(mode="json")}
        description |= {"decision": config.decision.model_dump(mode="json"), "partition": partition}
        (out / "model.json").write_text(json.dumps(description))
        return {"partitions": [partition], "recordings": {"train": 8, "validation": 4}}

    trained = perform("train", f"train-{seed}", *local_lake(run / "train"), train, {})

    def validate(out: Path) -> dict[str, Any]:
        binding = {"model": trained["outputs"]["model.safetensors"], "description": trained["outputs"]["model.json"]}
        interval = {"value": 0.9, "low": 0.8, "high": 0.95}
        probe = dict.fromkeys(("accuracy", "sensitivity", "specificity", "f1", "auc"), interval)
        (out / "metrics.json").write_text(json.dumps({"clean": probe | {"confusion": [[4, 0], [0, 4]]}}))
        (out / "verdict.json").write_text(json.dumps({"verdict": "blessed"}))
        blessing = {"blessing": "quality", "verdict": "blessed", "reasons": [], **binding}
        (out / "blessing.json").write_text(json.dumps(blessing))
        (out / "golden").mkdir()
        predictor, entries = inference.load(run / "train"), []
        for number in range(3):
            content = wav(2.0 + 2 * number, seed=number)
            (out / "golden" / f"{number:02d}.wav").write_bytes(content)
            (answer,) = predictor.predict([torch.from_numpy(as_float(decode(content, **LIMITS)))])
            entries.append({"file": f"{number:02d}.wav", **asdict(answer)})
        (out / "golden" / "golden.json").write_text(json.dumps(entries))
        return {"verdict": "blessed", "test_set": {"controls": 4, "patients": 4}}

    perform("validate", f"validate-{seed}", *local_lake(run / "validate"), validate, {})
    return run, config


def packaged(folder: Path, seed: int = 0, partition: str = "2026-11-05") -> tuple[Path, Config, dict[str, Any]]:
    """`make_run`, packaged; the last part is package.json."""
    run, config = make_run(folder, seed, partition)
    package.run(run=run, config=config)
    return run, config, json.loads((run / "package" / "package.json").read_text())


def archive_of(run: Path) -> Path:
    (found,) = (run / "package").glob("*.mar")
    return found


@dataclass
class Running:
    """A TorchServe process of the tests."""

    server: Server
    store: Path
    home: Path
    ports: list[int]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        names = ("inference", "management", "metrics", "grpc-inference", "grpc-management")
        options = [part for name, port in zip(names, self.ports, strict=True) for part in (f"--{name}", str(port))]
        command = [sys.executable, "-m", "serve.launch", "--store", str(self.store), "--home", str(self.home)]
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
        found = set()
        for entry in Path("/proc").iterdir():
            try:
                line = (entry / "cmdline").read_bytes()
            except (OSError, ValueError):
                continue
            if entry.name.isdigit() and b"model_service_worker" in line and str(self.home).encode() in line:
                found.add(int(entry.name))
        return found


def running(root: Path) -> Running:
    ports = free_ports(5)
    home, store = root / "home", root / "models"
    server = Server(f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", home / "key_file.json")
    return Running(server, store, home, ports)


@pytest.fixture(scope="session")
def torchserve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The session's TorchServe."""
    it = running(tmp_path_factory.mktemp("ts"))
    it.start()
    yield it
    it.stop()


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The session's MLflow server: SQLite and files in a temporary folder."""
    folder, (port,) = tmp_path_factory.mktemp("mlflow"), free_ports(1)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    uri, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            try:
                requests.get(f"{uri}/health", timeout=2).raise_for_status()
                break
            except requests.RequestException:
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.monotonic() < deadline, "MLflow did not start"
                time.sleep(0.5)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # the group: uvicorn's workers are its children
        process.wait(30)


def digest(file: Path) -> str:
    return digest_file(file)
