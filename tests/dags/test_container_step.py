"""Steps in real containers: what they may do, how they end, and that none is started twice or left behind."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.docker
DAGS = Path(__file__).resolve().parents[2] / "dags"
BUSYBOX = Path("/bin/busybox")
DONE = """echo '{"step": "s", "exit": 0, "outcome": "done", "message": "", "answer": 42}'"""


@pytest.fixture(scope="session")
def engine():
    from docker import APIClient
    from docker.errors import DockerException

    try:
        client = APIClient(os.environ.get("DOCKER_HOST"), version="auto")
        client.ping()
    except DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    return client


def shell_image(engine) -> str:
    """Put a tiny image whose `spira-train` runs a shell script on an engine; returns its name."""
    if not BUSYBOX.exists():
        pytest.skip(f"{BUSYBOX} is missing: install the Debian package busybox-static")
    name, content = f"spira-test-{uuid.uuid4().hex[:8]}", io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for path, data in (("bin/busybox", BUSYBOX.read_bytes()), ("bin/spira-train", b'#!/bin/sh\nexec sh -c "$2"\n')):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
        for tool in ("sh", "sleep", "id", "cat", "dd", "touch", "nc", "grep"):
            entry = tarfile.TarInfo(f"bin/{tool}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    engine.import_image_from_data(content.getvalue(), repository=name, changes=["ENV PATH=/bin"])
    return name


@pytest.fixture(scope="session")
def image(engine):
    """A tiny image whose `spira-train` runs the shell script that it is given."""
    name = shell_image(engine)
    yield name
    engine.remove_image(name, force=True)


@pytest.fixture
def stack(engine):
    """A stack's name of the test's own; what it leaves on the engine is a failure."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    yield name
    left = engine.containers(all=True, filters={"label": f"spira.stack={name}"})
    for container in left:
        engine.remove_container(container["Id"], force=True)
    assert left == []


@pytest.fixture
def make(load, image, stack):
    """A step in a container that runs a shell script."""
    load(SPIRA_RUNTIME="docker")

    def make(script: str, **kwargs):
        from container_step import ContainerStep

        common = {"image": image, "user": "10001:10001", "mem_limit": "64m", "cpus": 0.5, "network_mode": "none"}
        common |= {"refusal_is_result": False, "tell": (), "stack": stack}
        return ContainerStep(task_id="train", words=["run", script], **common | kwargs)

    return make


def context(attempt: int = 1) -> dict:
    ti = SimpleNamespace(dag_id="spira_training", run_id="r1", task_id="train", try_number=attempt)
    return {"ti": ti, "params": {}}


def run(task, attempt: int = 1) -> dict:
    return type(task).execute.__wrapped__(task, context(attempt))


def log_of(task, monkeypatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(type(task), "log", SimpleNamespace(info=lambda text, *values: said.append(text % values)))
    return said


def test_its_last_line_is_the_result_and_it_is_gone(make, monkeypatch):
    task = make(f"echo working; {DONE}; echo muttering >&2")
    said = log_of(task, monkeypatch)
    assert run(task)["answer"] == 42
    assert "working" in said


@pytest.mark.parametrize(
    ("code", "raised"), [(10, "AirflowFailException"), (20, "AirflowFailException"), (99, "AirflowSkipException"),
                         (75, "AirflowException"), (1, "AirflowException")],
)  # fmt: skip
def test_exit_codes(make, code, raised):
    task = make(f"""echo '{{"step": "s", "exit": {code}, "message": "the reason"}}'; exit {code}""")
    with pytest.raises(Exception, match="the reason") as caught:
        run(task)
    assert type(caught.value).__name__ == raised


def test_it_is_locked_in(make, monkeypatch):
    looks = (
        "id -u",
        "id -g",
        "touch /x 2>/dev/null && echo root-is-writable",
        "touch /tmp/x || echo no-scratch",
        "grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status",
        DONE,
    )
    task = make("; ".join(looks))  # a line of a step's words is a word
    said = log_of(task, monkeypatch)
    run(task)
    text = "\n".join(said[1:])  # the first line is the command itself
    assert "root-is-writable" not in text
    assert "no-scratch" not in text
    assert "\n10001\n10001\n" in text
    assert text.count("0000000000000000") == 3  # no capability, effective, permitted or to be had
    assert "NoNewPrivs:\t1" in text
    assert "Seccomp:\t2" in text


def test_what_the_engine_is_asked_for(make, engine, monkeypatch):
    task = make(f"sleep 30; {DONE}", cpus=1.5)
    process = in_background(task)
    host = inspect_when_running(engine, task.stack)["HostConfig"]
    kill(process)
    assert host["NanoCpus"] == 1_500_000_000
    assert (host["Memory"], host["PidsLimit"], host["ShmSize"]) == (64 << 20, 1024, 64 << 20)
    assert host["ReadonlyRootfs"] and host["Init"] and not host["Privileged"]
    assert (host["CapDrop"], host["SecurityOpt"], host["CapAdd"]) == (["ALL"], ["no-new-privileges"], None)
    assert host["NetworkMode"] == "none"
    remove_all(engine, task.stack)


def test_too_much_memory_reads_as_that(make):
    from airflow.sdk.exceptions import AirflowFailException

    task = make("dd if=/dev/zero of=/tmp/x bs=1M count=200; exit 137")
    with pytest.raises(AirflowFailException, match="out of memory: it needed more than its limit of 64m"):
        run(task)


def test_killing_the_task_stops_and_removes_the_container(make, engine):
    task = make(f"sleep 300; {DONE}")
    process = in_background(task)
    inspect_when_running(engine, task.stack)
    process.send_signal(signal.SIGTERM)  # what Airflow sends when a task is failed or cleared in the UI
    process.communicate(timeout=30)
    assert containers(engine, task.stack) == []


def test_a_timeout_stops_and_removes_the_container(make, engine):
    from airflow.sdk.exceptions import AirflowTaskTimeout
    from airflow.sdk.execution_time.timeout import TimeoutPosix

    task = make(f"sleep 60; {DONE}")
    with pytest.raises(AirflowTaskTimeout), TimeoutPosix(seconds=3):
        run(task)
    assert containers(engine, task.stack) == []


def test_after_its_worker_was_killed_the_next_try_goes_on_with_it(make, engine, monkeypatch):
    task = make(f"echo first-line; sleep 6; {DONE}")
    process = in_background(task)
    started = inspect_when_running(engine, task.stack)
    kill(process)
    assert [c["Id"] for c in containers(engine, task.stack)] == [started["Id"]]  # it goes on alone
    said = log_of(task, monkeypatch)
    assert run(task, attempt=2)["answer"] == 42
    assert any("going on with container" in text and "which try 1 left and which still runs" in text for text in said)
    assert said.count("first-line") == 1  # the whole log, from the start
    assert not any("of image" in text for text in said)  # no second one was started


def test_what_finished_unwatched_counts(make, engine, monkeypatch):
    task = make(f"sleep 2; {DONE}")
    kill(in_background(task, until=lambda: inspect_when_running(engine, task.stack)))
    while containers(engine, task.stack)[0]["State"] == "running":
        time.sleep(0.1)
    said = log_of(task, monkeypatch)
    assert run(task, attempt=2)["answer"] == 42
    assert any("has finished" in text for text in said)


@pytest.mark.parametrize("left", ["sleep 1; exit 3", "sleep 300"])
def test_what_failed_or_does_other_work_is_not_taken_up(make, engine, left):
    old = make(left)
    kill(in_background(old, until=lambda: inspect_when_running(engine, old.stack)))
    while left.endswith("3") and containers(engine, old.stack)[0]["State"] == "running":
        time.sleep(0.1)
    new = make(left if left.endswith("3") else DONE)
    if left.endswith("3"):
        with pytest.raises(Exception, match="exit code 3"):  # it ran again, and failed again
            run(new, attempt=2)
    else:
        assert run(new, attempt=2)["answer"] == 42
    assert containers(engine, old.stack) == []


def test_other_stacks_are_left_alone(make, engine):
    mine, theirs = make(DONE), make("sleep 300", stack=f"test-{uuid.uuid4().hex[:8]}")
    kill(in_background(theirs, until=lambda: inspect_when_running(engine, theirs.stack)))
    assert run(mine)["answer"] == 42
    assert len(containers(engine, theirs.stack)) == 1
    remove_all(engine, theirs.stack)


def test_the_reaper_removes_orphans_alone(make, engine):
    from step_containers import known, orphans

    task = make("sleep 300")
    kill(in_background(task, until=lambda: inspect_when_running(engine, task.stack)))
    (left,) = known(engine, task.stack)
    left["Created"] -= 3600
    waiting = SimpleNamespace(get_task_states=lambda **_: {"r1": {"train": "up_for_retry"}})
    assert orphans([left], waiting) == []
    over = SimpleNamespace(get_task_states=lambda **_: {"r1": {"train": "failed"}})
    assert orphans([left], over) == [left]
    remove_all(engine, task.stack)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"image": "spira_nowhere"}, "image spira_nowhere is not on the Docker engine .*; build it with `make images`"),
        ({"gpus": "all"}, "SPIRA_GPUS=all, but .* offers no GPU"),
        ({"network_mode": "no-such-network"}, "network no-such-network does not exist on .*; is the stack up"),
        ({"mounts": [{"target": "/lake", "source": "/no/such/folder", "type": "bind"}]},
         "folder /no/such/folder does not exist on the engine's host"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_not_tried_again(make, settings, said):
    from airflow.sdk.exceptions import AirflowFailException

    with pytest.raises(AirflowFailException, match=said):
        run(make(DONE, **settings))


def test_gpu_where_there_is_one(make, engine, monkeypatch):
    if "nvidia" in engine.info()["Runtimes"]:
        pytest.skip("this engine offers a GPU")
    task = make(DONE, gpus="auto")
    said = log_of(task, monkeypatch)
    assert run(task)["answer"] == 42
    assert "SPIRA_GPUS=auto: the engine offers no GPU here, so this step runs on the CPU" in said


def test_an_engine_that_is_down_is_worth_another_try(make):
    from airflow.sdk.exceptions import AirflowException, AirflowFailException

    task = make(DONE, docker_url="unix:///nowhere/docker.sock")
    with pytest.raises(AirflowException, match="does not answer; start it") as caught:
        run(task)
    assert not isinstance(caught.value, AirflowFailException)


# A worker of Airflow, as far as it matters here: it runs the task and is asked to end by SIGTERM.
WORKER = """
import json, signal, sys
sys.path.insert(0, {dags!r})
from types import SimpleNamespace
from container_step import ContainerStep
task = ContainerStep(task_id="train", **json.loads(sys.argv[1]))
ti = SimpleNamespace(dag_id="spira_training", run_id="r1", task_id="train", try_number=1)
signal.signal(signal.SIGTERM, lambda *_: task.on_kill())
type(task).execute.__wrapped__(task, {{"ti": ti, "params": {{}}}})
"""


def in_background(task, until=None) -> subprocess.Popen:
    names = (
        "words",
        "image",
        "user",
        "mem_limit",
        "cpus",
        "network_mode",
        "refusal_is_result",
        "tell",
        "stack",
        "gpus",
    )
    words = json.dumps({name: getattr(task, name) for name in names})
    code = textwrap.dedent(WORKER.format(dags=str(DAGS)))
    process = subprocess.Popen([sys.executable, "-c", code, words], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    if until:
        until()
    return process


def kill(process: subprocess.Popen) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)


def containers(engine, stack: str) -> list[dict]:
    return engine.containers(all=True, filters={"label": f"spira.stack={stack}"})


def inspect_when_running(engine, stack: str) -> dict:
    deadline = time.monotonic() + 60
    while not (there := engine.containers(filters={"label": f"spira.stack={stack}"})):
        assert time.monotonic() < deadline, "the container never ran"
        time.sleep(0.1)
    return engine.inspect_container(there[0]["Id"])


def remove_all(engine, stack: str) -> None:
    for container in containers(engine, stack):
        engine.remove_container(container["Id"], force=True)
