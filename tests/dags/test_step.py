"""How a step's end reads in Airflow, and what each runtime is told to run."""

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

OUTCOME = Path(__file__).resolve().parents[2] / "spira_train" / "outcome.py"
SETUP = ["setup", "--partition", "2026-11-03", "--preset", "fast", "--set=train.epochs=3", '--set=model.name="tiny"']


def line(exit: int = 0, outcome: str = "done", message: str = "", **facts) -> str:
    return json.dumps({"step": "s", "exit": exit, "outcome": outcome, "message": message} | facts)


def context(params: dict | None = None, partition_key: str | None = "2026-11-03", events: dict | None = None) -> dict:
    results = {"setup": {"run": "/runs/x"}, "validate": {"summary": {"auc": 0.9}}}
    ti = SimpleNamespace(
        xcom_pull=results.get, dag_id="spira_training", run_id="backfill__1", task_id="train", try_number=2
    )
    return {
        "ti": ti,
        "partition_key": partition_key,
        "params": {"partition": None, "preset": "fast", "approve": False} | (params or {}),
        "outlet_events": events or {},
    }


def test_exit_codes_are_those_of_the_command_line(load):
    load()
    from step_outcome import Exit

    enum = next(n for n in ast.parse(OUTCOME.read_text()).body if isinstance(n, ast.ClassDef) and n.name == "Exit")
    theirs = {a.targets[0].id: a.value.value for a in enum.body if isinstance(a, ast.Assign)}
    assert theirs == {member.name: int(member) for member in Exit}


@pytest.mark.parametrize(
    ("code", "raised"),
    [
        (1, "AirflowException"),
        (2, "AirflowException"),
        (10, "AirflowFailException"),
        (20, "AirflowFailException"),
        (75, "AirflowException"),
        (99, "AirflowSkipException"),
        (137, "AirflowException"),
    ],
)
def test_ends(load, code, raised):
    load()
    from step_outcome import settle

    with pytest.raises(Exception, match="the reason") as caught:
        settle("train", code, ["progress", line(code, "x", "the reason")])
    assert type(caught.value).__name__ == raised


def test_done_gives_the_last_line(load):
    load()
    from step_outcome import settle

    assert settle("setup", 0, ["{not json", line(run="/runs/x"), "a library mutters"])["run"] == "/runs/x"


def test_only_validate_may_refuse_and_end_well(load):
    dag = load()
    from step_outcome import settle

    assert settle("validate", 20, [line(20, "refused", "no")], refusal_is_result=True)["outcome"] == "refused"
    assert {t.task_id for t in dag.tasks if getattr(t, "refusal_is_result", False)} == {"validate"}


def test_ends_without_a_word(load):
    load()
    from airflow.sdk.exceptions import AirflowException
    from step_outcome import settle

    ends = {-9: "killed by signal 9; out of memory", 137: "signal 9", 3: "exit code 3", 0: "no line"}
    for code, said in ends.items():
        with pytest.raises(AirflowException, match=said):
            settle("train", code, ["Traceback"])


def test_a_run_without_a_partition_fails_and_says_so(load):
    dag = load()
    from airflow.sdk.exceptions import AirflowFailException

    with pytest.raises(AirflowFailException, match="this run has no partition: trigger it with"):
        render(dag, "setup", context(partition_key=None))


def test_the_param_wins_over_the_key(load):
    words = render(load(), "setup", context({"partition": "2026-10-01"}))
    assert words[:3] == ["setup", "--partition", "2026-10-01"]


def test_rendered_words_of_both_runtimes(load):
    chosen = context({"train.epochs": 3, "model.name": "tiny", "train.batch": None})
    for runtime in ("process", "docker"):
        dag = load(SPIRA_RUNTIME=runtime)
        assert render(dag, "setup", chosen) == SETUP
        assert render(dag, "train", chosen) == ["train", "--run", "/runs/x"]


def test_an_unknown_param_reaches_setup_which_refuses_it(load):
    assert "--set=train.epoch=3" in render(load(), "setup", context({"train.epoch": 3}))


def test_what_a_container_may_touch(load):
    dag = load(SPIRA_RUNTIME="docker", SPIRA_LAKE_VOLUME="/srv/lake", MLFLOW_TRACKING_URI="http://mlflow:5000")
    train = dag.get_task("train")
    assert train.environment == {
        "SPIRA_LAKE": "/lake",
        "SPIRA_RUNS": "/runs",
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
    }
    assert touches(train) == {"/lake": ("bind", "/srv/lake", "read"), "/runs": ("volume", "spira-runs", "write")}
    register = touches(dag.get_task("register"))
    assert register["/models"] == ("volume", "spira-models", "write")
    assert register["/keys"] == ("volume", "spira-keys", "read")
    writers = [t.task_id for t in dag.tasks if touches(t).get("/lake", ("", "", ""))[2] == "write"]
    assert sorted(writers) == ["extract", "features"]
    networked = {t.task_id: t.network_mode for t in dag.tasks if getattr(t, "network_mode", "none") != "none"}
    assert networked == dict.fromkeys(("train", "validate", "rejected", "register", "verify"), "spira-steps")
    assert [t.task_id for t in dag.tasks if "/keys" in touches(t)] == ["register", "verify"]


def test_only_package_sees_the_private_key_and_only_register_the_public_one(load):
    secret, public = "SPIRA_SIGNING_KEY", "SPIRA_VERIFY_KEY"
    dag = load(SPIRA_RUNTIME="docker")
    assert {t.task_id: touches(t)["/signing"] for t in dag.tasks if "/signing" in touches(t)} == {
        "package": ("volume", "spira-signing-key", "read")
    }
    assert {t.task_id: touches(t)["/trust"] for t in dag.tasks if "/trust" in touches(t)} == {
        "register": ("volume", "spira-verify-key", "read")
    }
    assert dag.get_task("package").environment[secret] == "/signing/signing.key"
    assert dag.get_task("package").network_mode == "none"
    assert dag.get_task("register").environment[public] == "/trust/signing.pub"
    dag = load(SPIRA_RUNTIME="process", SPIRA_SIGNING_KEY="/s/signing.key", SPIRA_VERIFY_KEY="/s/signing.pub")
    for name, holder in ((secret, "package"), (public, "register")):
        assert [t.task_id for t in dag.tasks if name in getattr(t, "environment", {})] == [holder]


def test_container_limits_and_gpus(load):
    dag = load(SPIRA_RUNTIME="docker", SPIRA_GPUS="all", SPIRA_CPUS="1.5", SPIRA_MEMORY="3g", SPIRA_IMAGE="sha256:ab")
    train, extract = dag.get_task("train"), dag.get_task("extract")
    assert (train.gpus, extract.gpus) == ("all", "none")
    for task in (train, extract):
        assert (task.cpus, task.mem_limit, task.image) == (1.5, "3g", "sha256:ab")
        assert task.user == "10001:10001"
        assert task.auto_remove == "force"
        assert not task.mount_tmp_dir
        assert not task.privileged
        assert not task.retrieve_output


@pytest.mark.parametrize(
    ("name", "value"),
    [("SPIRA_USER", "root"), ("SPIRA_USER", "0:0"), ("SPIRA_USER", "10001:0"), ("SPIRA_MEMORY", "much"),
     ("SPIRA_CPUS", "0"), ("SPIRA_CPUS", "all"), ("SPIRA_GPUS", "0")],
)  # fmt: skip
def test_wrong_settings_of_a_container_are_named(load, name, value):
    with pytest.raises(ValueError, match=f"{name} is '{value}'; allowed: "):
        load(SPIRA_RUNTIME="docker", **{name: value})


def test_a_denied_socket_and_a_silent_engine_read_differently(load, tmp_path, monkeypatch):
    load(SPIRA_RUNTIME="docker")
    import container_step
    from airflow.sdk.exceptions import AirflowFailException

    socket = tmp_path / "docker.sock"
    socket.touch()
    monkeypatch.setattr(container_step.os, "access", lambda *_: False)
    denied = container_step.unreachable(f"unix://{socket}")
    assert isinstance(denied, AirflowFailException)  # trying again would not help
    assert "this user may not use the Docker engine" in str(denied)
    down = container_step.unreachable("tcp://engine-proxy:2375")
    assert not isinstance(down, AirflowFailException)
    assert "does not answer; start it" in str(down)


def test_orphans_are_those_whose_task_is_over(load):
    load(SPIRA_RUNTIME="docker")
    from datetime import UTC, datetime

    from step_containers import orphans

    now = datetime(2026, 11, 24, 12, tzinfo=UTC)

    def container(run: str, task: str, age: int = 600) -> dict:
        labels = {"spira.dag": "spira_training", "spira.run": run, "spira.task": task}
        return {"Id": f"{run}/{task}/{age}", "Created": now.timestamp() - age, "Labels": labels}

    states = {"failed": "failed", "done": "success", "retry": "up_for_retry", "runs": "running", "cleared": None}
    ti = SimpleNamespace(get_task_states=lambda dag_id, run_ids: {r: states for r in run_ids if r == "known"})
    there = [container("known", task) for task in states] + [
        container("known", "failed", 5),
        container("gone", "train"),
    ]
    assert [c["Id"] for c in orphans(there, ti, now)] == ["known/failed/600", "known/done/600", "gone/train/600"]


@pytest.fixture
def shell(load, tmp_path):
    """A process task that runs a shell script in place of `spira-train`."""

    def make(script: str, **kwargs):
        load(SPIRA_RUNTIME="process")
        from process_step import ProcessStep

        executable = tmp_path / "spira-train"
        executable.write_text(f"#!/bin/sh\n{script}\n")
        executable.chmod(0o755)
        return ProcessStep(
            task_id="t", words=["t"], executable=str(executable), environment={"PATH": "/usr/bin:/bin"},
            refusal_is_result=False, tell=(), **kwargs,
        )  # fmt: skip

    return make


def test_a_process_gives_its_last_line_and_hears_no_secrets(shell, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "secret")
    task = shell(f"env >&2; echo '{line(run='/runs/y')}'")
    said = []
    monkeypatch.setattr(type(task), "log", SimpleNamespace(info=lambda f, *a: said.append(f % a)), raising=False)
    assert run(task, context())["run"] == "/runs/y"
    assert any("PATH=" in text for text in said)  # progress lines reach the task's log
    assert not any("secret" in text or "AIRFLOW" in text for text in said)


def test_what_outlives_its_step_is_killed(shell, tmp_path):
    task = shell(f"sleep 300 & echo $! > {tmp_path}/child; echo '{line()}'")
    run(task, context())
    assert gone(int((tmp_path / "child").read_text()))


def test_killing_the_task_kills_the_whole_group(shell, tmp_path):
    import threading
    import time

    from airflow.sdk.exceptions import AirflowException

    task = shell(f"sleep 300 & echo $! > {tmp_path}/child; wait")
    ends: list[Exception] = []

    def work():
        try:
            run(task, context())
        except AirflowException as end:
            ends.append(end)

    worker = threading.Thread(target=work)
    worker.start()
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
        time.sleep(0.01)
    task.on_kill()
    worker.join(20)
    assert not worker.is_alive()
    assert "killed by signal" in str(ends[0])
    assert gone(int((tmp_path / "child").read_text()))


def test_a_task_killed_while_its_step_begins_stops_it(shell):
    from airflow.sdk.exceptions import AirflowException

    task = shell("sleep 20")
    task.on_kill()  # as a kill that comes while the process is made: it stands, and the task does not know it yet
    with pytest.raises(AirflowException, match="killed by signal"):
        run(task, context())


def test_a_missing_command_fails_at_once(shell):
    from airflow.sdk.exceptions import AirflowFailException

    task = shell("true")
    task.executable = "/nowhere/spira-train"
    with pytest.raises(AirflowFailException, match="SPIRA_TRAIN=/nowhere/spira-train: cannot be run"):
        run(task, context())


def test_assets_carry_the_facts(shell):
    from airflow.sdk import Asset

    champion, added = Asset("spira/champion"), []
    event = SimpleNamespace(extra={}, add_partitions=added.append)
    task = shell(f"echo '{line(summary={'version': '7'})}'", outlets=[champion])
    task.tell = ("validate",)
    run(task, context({"partition": "2026-10-01"}, events={champion: event}))
    assert event.extra == {"version": "7", "validate": {"auc": 0.9}}
    assert added == ["2026-10-01"]


def test_a_version_beside_the_champion_publishes_no_champion(shell):
    from airflow.sdk import Asset

    held = shell(f"echo '{line(summary={'version': '8', 'champion': '7'})}'", outlets=[Asset("spira/champion")])
    run(held, context())
    assert held.outlets == []
    promoted = shell(f"echo '{line(summary={'version': '8', 'champion': '8'})}'", outlets=[Asset("spira/champion")])
    event = SimpleNamespace(extra={})
    run(promoted, context(events={promoted.outlets[0]: event}))
    assert [asset.name for asset in promoted.outlets] == ["spira/champion"]
    assert event.extra["version"] == "8"


def render(dag, task_id: str, values: dict) -> list[str]:
    from step_outcome import spread

    task = dag.get_task(task_id)
    return spread(task.render_template(task.words, values | dag.user_defined_macros, dag.get_template_env()))


def touches(task) -> dict[str, tuple[str, str, str]]:
    """Target -> (type, source, right) of a container's mounts."""
    mounts = getattr(task, "mounts", ())
    return {m["Target"]: (m["Type"], m["Source"], "read" if m["ReadOnly"] else "write") for m in mounts}


def run(task, values: dict):
    """`execute`, past Airflow's guard against being called outside a task runner."""
    method = type(task).execute
    return getattr(method, "__wrapped__", method)(task, values)


def gone(pid: int) -> bool:
    import time

    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False
