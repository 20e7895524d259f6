"""`spira_collection` runs in a real Airflow, with a stub for the step: an event a day, and perhaps one training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DAYS = ["2026-11-01", "2026-11-02"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> dict:
    """What came of a run that may train."""
    folder, script = tmp_path_factory.mktemp("airflow-run"), Path(__file__).with_name("collection_run.py")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SPIRA_", "AIRFLOW"))}
    command = [sys.executable, str(script), str(folder), "train"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
def test_every_closed_day_is_an_event_of_the_asset(ran):
    assert ran["state"] == "success"
    assert ran["events"] == [["spira/collected", {"partition": day}, day] for day in DAYS]
    assert ran["words"] == ["collected", f"--by={ran['run_id']}"]


@pytest.mark.slow
def test_one_training_starts_for_the_newest_day(ran):
    assert ran["training"] == [{"partition": "2026-11-02"}]


def test_scheduled_runs_train_only_where_the_setting_says_so(load):
    for value, wanted in (("1", True), ("", False)):
        load(SPIRA_TRAIN_ON_CLOSE=value, SPIRA_RUNTIME="process")
        from spira_collection import dag

        assert dag.params.get_param("train").value is wanted
        assert dag.schedule.expression == "*/15 * * * *"
        edges = {(task.task_id, down) for task in dag.tasks for down in task.downstream_task_ids}
        assert edges == {("collected", "days"), ("days", "announce"), ("announce", "wanted"), ("wanted", "train")}


def test_the_step_may_write_to_the_lake_and_to_nothing_else(load):
    load(SPIRA_RUNTIME="docker")
    from spira_collection import dag

    task = dag.get_task("collected")
    assert [(mount["Target"], mount["ReadOnly"]) for mount in task.mounts] == [("/lake", False)]
    assert set(task.environment) == {"SPIRA_LAKE"}
