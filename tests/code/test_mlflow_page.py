"""MLflow's page, where the reports are: one name for it in every runtime, and MLflow answers to that name."""

import os
import subprocess

import pytest
from test_compose_file import FILES, ROOT, resolved

from local import compose, services
from local.ports import DEFAULTS


@pytest.mark.parametrize(
    ("bind", "host"),
    [
        ({}, "127.0.0.1"),
        ({"SPIRA_BIND": "10.0.0.1"}, "10.0.0.1"),
        ({"SPIRA_BIND": "0.0.0.0"}, "ward-server"),  # noqa: S104
        ({"SPIRA_BIND": "0.0.0.0", "SPIRA_HOST_NAME": "spira.hospital.example"}, "spira.hospital.example"),  # noqa: S104
        ({"SPIRA_HOST_NAME": "spira.hospital.example"}, "127.0.0.1"),  # only the door is open to others
    ],
)
def test_a_report_is_linked_where_its_reader_can_reach_it(bind, host):
    assert compose.mlflow_page(bind | {"MLFLOW_PORT": "5001"}, "ward-server") == f"http://{host}:5001"


def test_airflow_and_mlflow_are_told_the_same_page():
    page = "https://mlflow.hospital.example"
    found = resolved(FILES[0], SPIRA_MLFLOW_UI=page)["services"]
    told = {name: one["environment"].get("SPIRA_MLFLOW_UI") for name, one in found.items() if one.get("environment")}
    assert {name for name, value in told.items() if value} == {"mlflow", "airflow-scheduler", "airflow-dag-processor"}
    assert set(filter(None, told.values())) == {page}


@pytest.mark.parametrize(
    ("page", "name", "origin"),
    [
        (None, "127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("http://ward-server:5001", "ward-server:5001", "http://ward-server:5001"),
        ("https://mlflow.hospital.example/", "mlflow.hospital.example", "https://mlflow.hospital.example"),
    ],
)
def test_mlflow_answers_to_the_name_by_which_readers_come(tmp_path, page, name, origin):
    (tmp_path / "mlflow").write_text("#!/bin/sh\nenv\n")
    (tmp_path / "mlflow").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | ({"SPIRA_MLFLOW_UI": page} if page else {})
    said = subprocess.run(
        ["sh", ROOT / "images/mlflow/mlflow-start"], env=env, capture_output=True, text=True, check=True
    )
    told = dict(line.split("=", 1) for line in said.stdout.splitlines())
    assert told["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",") == ["localhost:*", "127.0.0.1:*", "mlflow:*", name]
    assert told["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == origin


def test_the_stack_of_processes_tells_mlflow_its_name_too(monkeypatch):
    ports = dict.fromkeys(DEFAULTS, 5001)
    monkeypatch.delenv("SPIRA_MLFLOW_UI", raising=False)
    assert "MLFLOW_SERVER_ALLOWED_HOSTS" not in services.command("mlflow", services.describe(ports))[1]
    monkeypatch.setenv("SPIRA_MLFLOW_UI", "http://tunnel.example:9000/")
    _, env = services.command("mlflow", services.describe(ports))
    assert env["MLFLOW_SERVER_ALLOWED_HOSTS"] == "localhost:*,127.0.0.1:*,tunnel.example:9000"
    assert env["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == "http://tunnel.example:9000"
