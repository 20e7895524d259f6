"""The whole pipeline under a real scheduler, with the real MLflow and the real TorchServe. One stack for all tests."""

import hashlib
import json
import re
from datetime import date
from pathlib import Path

import pytest
import requests
from deliveries import bring_up_to
from following import ended, newest_day, task_states, until

from local import demo, stack
from local.airflow_api import Airflow
from local.services import var
from serve import torchserve

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.torchserve, pytest.mark.timeout(1200)]
AFTER_PACKAGE = ("package", "approve", "rejected", "register", "verify")


@pytest.fixture(scope="module")
def newest() -> date:
    return newest_day()


@pytest.fixture(scope="module")
def running(tmp_path_factory, command, newest):
    """The stack, on a simulated lake of its own whose last day is the one that the schedule takes up."""
    place = tmp_path_factory.mktemp("stack")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPIRA_VAR", str(place))
        for name in ("SPIRA_LAKE", "SPIRA_RUNS", "SPIRA_MODELS", "SPIRA_TRAIN", "SPIRA_RUNTIME", "SPIRA_GPUS"):
            patch.delenv(name, raising=False)
        patch.setenv("SPIRA_PRESET", "fast")
        words = ("--days", demo.DAYS, "--subjects", demo.SUBJECTS, *demo.VOICES)
        code, _, errors = command("simulate", "--lake", place / "lake", *words)
        assert code == 0, errors
        bring_up_to(place / "lake", newest)
        yield stack.up()
        stack.down()
        assert stack.members() == {}


@pytest.fixture(scope="module")
def airflow(running) -> Airflow:
    api = stack.login(running)
    until(api.knows)
    assert api.import_errors() == []
    api.pause(False)
    return api


@pytest.fixture(scope="module")
def days(running) -> list[str]:
    return sorted(p.name for p in Path(running["places"]["SPIRA_LAKE"], "landing").iterdir())


@pytest.fixture(scope="module")
def scheduled(airflow) -> dict:
    """The run that the scheduler starts when the DAG is unpaused."""
    run = until(lambda: next(iter(airflow.runs(run_type="scheduled")), None))
    return ended(airflow, run["dag_run_id"])


@pytest.fixture(scope="module")
def trained(airflow, days, scheduled) -> dict[str, dict]:
    """The runs of a backfill over the whole lake: partition -> run. What the scheduled run did is not done again."""
    runs = backfill(airflow, days)
    for run in runs.values():
        assert run["state"] == "success", demo.why(airflow, run)
    return runs


def test_the_scheduler_takes_up_the_newest_day_by_itself_and_its_model_is_served(airflow, scheduled, newest, running):
    assert scheduled["partition_key"] == f"{newest}"
    assert scheduled["state"] == "success", demo.why(airflow, scheduled)
    states = task_states(airflow, scheduled["dag_run_id"])
    assert {states.pop("approve"), states.pop("rejected"), states.pop("refused")} == {"skipped"}
    assert set(states.values()) == {"success"}
    champion = airflow.result(scheduled["dag_run_id"], "register")["summary"]["champion"]
    assert torchserve.status(server(running))["default"] == champion
    assert "both blessings are signed by" in airflow.log(scheduled["dag_run_id"], "register")


def test_a_backfill_prepares_every_day_and_trains_for_the_newest(airflow, scheduled, trained, days):
    assert sorted(trained) == days
    for day in days[:-1]:
        states = task_states(airflow, trained[day]["dag_run_id"])
        assert (states["features"], states["train"], states["register"]) == ("success", "skipped", "skipped")
    newest = trained[days[-1]]["dag_run_id"]
    states = task_states(airflow, newest)
    assert {states.pop("approve"), states.pop("rejected"), states.pop("refused")} == {"skipped"}
    assert set(states.values()) == {"success"}
    # The scheduler has trained this already: with the same configuration, since `SPIRA_PRESET` names the preset.
    assert airflow.result(newest, "setup")["run"] == airflow.result(scheduled["dag_run_id"], "setup")["run"]
    assert airflow.result(newest, "train")["cached"]


def test_the_model_is_served_and_announced(airflow, trained, days, running):
    champion = airflow.result(trained[days[-1]]["dag_run_id"], "register")["summary"]["champion"]
    assert torchserve.status(server(running))["default"] == champion
    events = airflow.call("GET", "assets/events", order_by="-timestamp", limit=50)["asset_events"]
    event = next(e for e in events if e["name"] == "spira/champion")
    assert event["extra"]["version"] == champion
    assert event["extra"]["validate"]["auc"] > 0.5
    assert event["partition_key"] == days[-1]
    assert {e["partition_key"] for e in events if e["name"] == "spira/features"} >= set(days)


def test_a_second_backfill_trains_nothing_and_changes_no_byte(airflow, trained, days, running):
    places = [Path(running["places"][name]) for name in ("SPIRA_LAKE", "SPIRA_RUNS", "SPIRA_MODELS")]
    before, champion = [digests(p) for p in places], torchserve.status(server(running))
    again = backfill(airflow, days)
    assert {run["state"] for run in again.values()} == {"success"}
    assert airflow.result(again[days[-1]]["dag_run_id"], "train")["cached"]
    assert [digests(p) for p in places] == before
    assert torchserve.status(server(running)) == champion


def test_a_refusal_says_so_and_the_champion_goes_on(airflow, trained, days, running):
    before = torchserve.status(server(running))
    params = {"partition": days[-1], "preset": "fast", "train.epochs": 1, "train.learning_rate": 1e-7}
    run = ended(airflow, airflow.trigger(params))
    assert run["state"] == "failed"
    states = task_states(airflow, run["dag_run_id"])
    assert states["validate"] == "success"  # it did its work
    assert [name for name, state in states.items() if state == "failed"] == ["refused"]
    assert {states[name] for name in AFTER_PACKAGE} == {"skipped"}
    assert "refused by the gate: " in airflow.log(run["dag_run_id"], "refused")
    assert torchserve.status(server(running)) == before
    chosen = json.loads(Path(airflow.result(run["dag_run_id"], "setup")["run"], "config.json").read_text())
    assert (chosen["train"]["epochs"], chosen["train"]["learning_rate"]) == (1, 1e-7)


def test_a_manual_run_takes_the_partition_key(airflow):
    run = ended(airflow, airflow.trigger({"preset": "fast"}, partition_key="1999-12-31"))
    assert run["state"] == "success"
    states = task_states(airflow, run["dag_run_id"])
    assert states.pop("setup") == "success"
    assert set(states.values()) == {"skipped"}  # nothing was collected on that day


def test_no_partition_at_all(airflow):
    run = ended(airflow, airflow.trigger({"preset": "fast"}))
    assert run["state"] == "failed"
    assert "this run has no partition: trigger it with the param" in airflow.log(run["dag_run_id"], "setup")


def test_wrong_params(airflow, days):
    with pytest.raises(requests.HTTPError, match="less than the minimum"):
        airflow.trigger({"partition": days[0], "train.epochs": 0})
    run = ended(airflow, airflow.trigger({"partition": days[0], "train.epoch": 3}))
    assert run["state"] == "failed"
    assert airflow.tasks(run["dag_run_id"])["setup"]["try_number"] == 1  # trying again would not help
    assert "did you mean train.epochs?" in airflow.log(run["dag_run_id"], "setup")


@pytest.mark.parametrize(
    ("answer", "run_is", "then"),
    [
        ("Reject", "failed", ("success", "failed", "skipped", "skipped")),
        ("Approve", "success", ("success", "skipped", "success", "success")),
    ],
)
def test_a_human_is_asked_where_the_run_says_so(airflow, trained, days, running, answer, run_is, then):
    run_id = airflow.trigger({"partition": days[-1], "preset": "fast", "approve": True})
    until(lambda: task_states(airflow, run_id)["approve"] == "awaiting_input")
    # Airflow 3.3.2 fails a task that is answered before the scheduler has heard that its worker ended.
    heard = re.compile(rf"executor event with state success .*task_id='approve', run_id='{re.escape(run_id)}'")
    until(lambda: heard.search((var() / "log/airflow.log").read_text()))
    question = f"dags/spira_training/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails"
    airflow.call("PATCH", question, {"chosen_options": [answer], "params_input": {}})
    assert ended(airflow, run_id)["state"] == run_is
    states = task_states(airflow, run_id)
    assert tuple(states[name] for name in ("approve", "rejected", "register", "verify")) == then
    said = airflow.call("GET", question)
    assert (said["chosen_options"], said["responded_by_user"]["name"]) == ([answer], "admin")  # who is on record
    asked = said["body"]
    assert "**The gate blessed this model**" in asked
    assert "None" not in asked
    assert f"]({running['places']['MLFLOW_TRACKING_URI']}/#/experiments/" in asked
    if answer == "Reject":
        assert "rejected by admin" in airflow.log(run_id, "rejected")
        assert "goes on serving" in airflow.log(run_id, "rejected")


def backfill(airflow: Airflow, days: list[str]) -> dict[str, dict]:
    number = airflow.backfill(days[0], days[-1], demo.PRESET, again=True)
    until(lambda: airflow.call("GET", f"backfills/{number}")["completed_at"])
    runs = airflow.backfill_runs(number)
    assert sorted(runs) == days
    return {day: ended(airflow, run["dag_run_id"]) for day, run in runs.items()}


def server(running) -> torchserve.Server:
    places = running["places"]
    return torchserve.Server(places["SPIRA_INFERENCE"], places["SPIRA_MANAGEMENT"], Path(places["SPIRA_KEYS"]))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
