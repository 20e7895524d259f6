"""The supervised stack: it comes up, it goes down, and it leaves nothing behind. MLflow alone stands for the three."""

import os
import signal
import stat
import subprocess
import sys
import time
import uuid

import pytest
import requests

from local import services, stack

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIRA_VAR", str(tmp_path))
    yield tmp_path
    stack.down()
    assert stack.members() == {}


def test_up_again_changes_nothing_and_down_leaves_nothing(place):
    first = stack.up(("mlflow",))
    assert stack.up(("mlflow",))["supervisor"] == first["supervisor"]
    assert requests.get(first["health"]["mlflow"], timeout=5).ok
    stack.down()
    assert stack.members() == {}
    assert stack.state() is None
    assert (place / "mlflow/mlflow.db").exists()  # the data stays


def test_the_two_ends_come_up_and_people_log_in(place):
    started = stack.up(("nats", "collect", "app", "worker"))
    assert stat.S_IMODE((place / "inferences").stat().st_mode) == 0o700
    with requests.Session() as browser:
        password = services.first_password().read_text()
        me = browser.post(f"{started['app']}/v1/session", json={"name": "demo", "password": password}, timeout=20)
        assert me.json()["roles"] == ["collector", "clinician", "engineer"]
        assert browser.get(f"{started['app']}/collect/v1/days", timeout=20).json() == []  # handed on, with its cookie
        sent = browser.put(
            f"{started['app']}/v1/inferences/{uuid.uuid4().hex}",
            data=b"no sound",
            headers={"X-CSRF-Token": me.json()["csrf"]},
            timeout=20,
        )
        assert sent.status_code == 202  # whether it is one is the model's to say


def test_down_after_the_supervisor_was_killed(place):
    started = stack.up(("mlflow",))
    os.kill(started["supervisor"], signal.SIGKILL)
    while stack.state():
        time.sleep(0.1)
    assert stack.members()  # the service lives on
    stack.down()
    assert stack.members() == {}


def test_a_service_that_ends_is_named_with_its_log(place, monkeypatch):
    broken = ([sys.executable, "-c", "raise SystemExit('no disk')"], {})
    script = place / "broken.py"
    script.write_text(
        "import sys, local.stack as s\n"
        f"s.command = lambda *_: {broken!r}\n"
        "s.main(sys.argv[1:])\n"
    )  # fmt: skip
    popen = subprocess.Popen
    monkeypatch.setattr(
        stack.subprocess, "Popen", lambda words, **kw: popen([words[0], str(script), *words[3:]], **with_root(kw))
    )
    with pytest.raises(SystemExit, match=r"mlflow ended; the stack was stopped(.|\n)*no disk"):
        stack.up(("mlflow",))
    assert stack.state() is None


def test_one_at_a_time(place):
    import fcntl

    with (place / "stack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="another `up` or `down` is at work"):
            stack.up(("mlflow",))


def test_a_port_that_was_asked_for_and_is_taken(place, monkeypatch):
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setenv("MLFLOW_PORT", str(other.getsockname()[1]))
        with pytest.raises(SystemExit, match="that port is in use"):
            stack.up(("mlflow",))


def with_root(kwargs: dict) -> dict:
    return kwargs | {"env": kwargs["env"] | {"PYTHONPATH": str(kwargs["cwd"])}}
