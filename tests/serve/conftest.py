"""A real TorchServe and a real MLflow, each started once, on free ports of loopback."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from registering import Made, Place
from runs import free_ports, packaged
from servers import Running, running

from serve import torchserve as ts
from spira_train.registry import Registry


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
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, start_new_session=True, env=os.environ | quiet
        )
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


@pytest.fixture
def place(torchserve: Running, mlflow: str, request: pytest.FixtureRequest) -> Iterator[Place]:
    """(server under a name of its own, model store, MLflow with no versions)."""
    server = replace(torchserve.server, name=request.node.name.replace("[", "-").replace("]", "")[-40:])
    yield server, torchserve.store, mlflow
    client = Registry(mlflow).client
    for model in client.search_registered_models():
        client.delete_registered_model(model.name)
    for run in client.search_runs([e.experiment_id for e in client.search_experiments()]):
        client.delete_run(run.info.run_id)
    for version in sorted(ts.status(server)["versions"], key=lambda v: v == ts.status(server)["default"]):
        ts.unregister(server, version)


@pytest.fixture(scope="session")
def baked(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    """Five packaged runs; `made` gives copies."""
    folder = tmp_path_factory.mktemp("baked")
    return [packaged(folder, seed, f"2026-11-0{seed}") for seed in range(1, 6)]


@pytest.fixture
def made(baked: list[Made], tmp_path: Path) -> list[Made]:
    return [(Path(shutil.copytree(run, tmp_path / run.name)), config, facts) for run, config, facts in baked]
