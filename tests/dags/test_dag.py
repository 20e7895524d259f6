"""The shape of `spira_training`: it parses, alone, and its tasks are wired as the documentation says."""

import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

DAGS = Path(__file__).resolve().parents[2] / "dags"
CHAIN = ["setup", "extract", "features", "train", "validate", "verdict", "package", "approve", "register", "verify"]


def test_the_folder_parses_without_errors(monkeypatch):
    monkeypatch.setenv("SPIRA_RUNTIME", "process")
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(DAGS))
    assert bag.import_errors == {}
    assert set(bag.dags) == {"spira_training", "spira_rollback", "spira_upkeep", "spira_watch", "spira_collection"}


def test_it_imports_neither_torch_nor_the_training_package():
    code = "import sys, spira_training; print(*(m for m in sys.modules if m.split('.')[0] in ('torch', 'spira_train')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=DAGS)
    assert done.stdout.split() == []


def test_no_module_hides_behind_an_installed_package():
    """Airflow appends the folder to the end of the import path, so an installed package of that name would win."""
    names = [file.stem for file in DAGS.glob("*.py")]
    code = f"import importlib.util as u; print(*(n for n in {names} if u.find_spec(n)))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(("asked", "word"), [(None, "--to="), ("2026-11-05-1a2b3c4d", "--to=2026-11-05-1a2b3c4d")])
def test_a_rollback_can_be_sent_with_an_empty_form(load, asked, word):
    load()
    from spira_rollback import dag

    field = dag.params.get_param("version")
    assert field.value is None, "the page's form does not send an empty text"
    task = dag.get_task("rollback")
    task.render_template_fields({"params": {"version": field.resolve(asked)}})
    assert task.words == ["rollback", word]


def test_edges(load):
    dag = load()
    edges = {(task.task_id, down) for task in dag.tasks for down in task.downstream_task_ids}
    assert edges == {
        *itertools.pairwise(CHAIN),
        ("verdict", "refused"),
        ("package", "register"),
        ("approve", "rejected"),
    }


def test_a_model_needs_no_approval_unless_asked_but_a_package(load):
    rules = {task.task_id: task.trigger_rule.value for task in load().tasks}
    assert rules.pop("register") == "none_failed_min_one_success"
    assert set(rules.values()) == {"all_success"}


def test_one_run_a_partition_the_day_before(load):
    dag = load()
    schedule = dag.schedule
    assert (schedule.expression, schedule.run_offset, schedule.key_format) == ("0 3 * * *", -1, "%Y-%m-%d")
    assert not dag.catchup
    assert dag.max_active_runs == 1
    assert dag.doc_md.strip().startswith("# SPIRA")


def test_every_step_ends_in_time_and_is_retried(load):
    for task in load().tasks:
        if task.task_id in ("approve", "refused", "verdict"):
            continue
        assert task.execution_timeout, task.task_id
        assert task.retries == 2, task.task_id
        assert task.retry_exponential_backoff, task.task_id
    assert load().get_task("refused").retries == 0
    assert load().get_task("approve").retries == 0  # a human's no is asked for once


def answered(**other) -> dict:
    """What the task `approve` gives: its XCom in Airflow 3.3.2."""
    from airflow.sdk import timezone

    user = {"id": "7", "name": "Ana Lima"}
    at = timezone.datetime(2026, 11, 6, 8, 30)
    return {"chosen_options": ["Approve"], "params_input": {}, "responded_at": at, "responded_by_user": user} | other


def register_words(dag, answer: dict | None, approve: bool = True, **params: str) -> list[str]:
    """The words of `spira-train register`, as rendered."""
    from step_outcome import spread

    results = {"setup": {"run": "/runs/x"}, "approve": answer}
    values = {
        "ti": SimpleNamespace(xcom_pull=results.get),
        "params": {"approve": approve} | params,
    } | dag.user_defined_macros
    task = dag.get_task("register")
    return spread(task.render_template(task.words, values, dag.get_template_env()))


def test_the_approver_reaches_the_register_step(load):
    dag = load()
    words = ["register", "--run", "/runs/x"]
    who = [*words, "--approver=Ana Lima"]
    assert register_words(dag, answered()) == [*who, "--approved-at=2026-11-06T08:30:00+00:00"]
    iso = "2026-11-06T09:00:00Z"
    assert register_words(dag, answered(responded_at=iso)) == [*who, f"--approved-at={iso}"]
    assert register_words(dag, answered(responded_by_user={"id": "7", "name": ""}))[3] == "--approver=7"
    assert register_words(dag, None, approve=False) == words
    assert register_words(dag, None, approve=False, stage="challenger") == [*words, "--hold"]
    assert register_words(dag, None, approve=False, stage="champion") == words
    # a yes of an earlier try; this one asked nobody
    assert register_words(dag, answered(), approve=False) == words


def test_a_name_cannot_smuggle_words_in(load):
    words = register_words(load(), answered(responded_by_user={"id": "7", "name": "Ana\n--models=/\u2028--keep=2"}))
    assert words[3] == "--approver=Ana --models=/ --keep=2"
    assert len(words) == 5


@pytest.mark.parametrize("answer", [None, {"responded_by_user": None}, {"chosen_options": ["Reject"]}])
def test_without_a_humans_yes_nothing_is_registered(load, answer):
    from airflow.sdk.exceptions import AirflowFailException

    with pytest.raises(AirflowFailException, match="no human's yes is on record"):
        register_words(load(), answer and answered(**answer))


def concluded(dag, event: dict) -> tuple[dict, list[str]]:
    """What the installed operator makes of an answer, or of none: its XCom, and the tasks that it skips."""
    from airflow.sdk.exceptions import DownstreamTasksSkipped

    pushed: dict = {}
    ti = SimpleNamespace(xcom_push=lambda key, value: pushed.__setitem__(key, value), map_index=-1)
    with pytest.raises(DownstreamTasksSkipped) as ended:  # so the worker keeps no result of its own
        dag.get_task("approve").execute_complete({"ti": ti}, event)
    return pushed["return_value"], list(ended.value.tasks)


def reply(chosen: str) -> dict:
    from airflow.models.hitl import HITLDetail

    asked = HITLDetail(chosen_options=[chosen], params_input={})
    asked.responded_by, asked.responded_at = {"id": "7", "name": "Ana Lima"}, answered()["responded_at"]
    return asked.as_resume_event_payload()


def rejection_words(dag, answer: dict | None) -> list[str]:
    """The words of `spira-train reject`, as rendered."""
    from step_outcome import spread

    results = {"setup": {"run": "/runs/x"}, "approve": answer}
    values = {"ti": SimpleNamespace(xcom_pull=results.get)} | dag.user_defined_macros
    task = dag.get_task("rejected")
    return spread(task.render_template(task.words, values, dag.get_template_env()))


def test_a_yes_registers_and_a_no_is_put_on_record(load):
    dag = load()
    given, skipped = concluded(dag, reply("Approve"))
    assert skipped == ["rejected"]
    assert register_words(dag, given)[3:] == ["--approver=Ana Lima", "--approved-at=2026-11-06T08:30:00+00:00"]
    given, skipped = concluded(dag, reply("Reject"))
    assert skipped == ["register"]
    assert rejection_words(dag, given) == [
        "reject",
        "--run",
        "/runs/x",
        "--by=Ana Lima",
        "--at=2026-11-06T08:30:00+00:00",
    ]


def test_no_answer_in_time_is_a_no(load):
    dag = load(SPIRA_APPROVAL_HOURS="1.5")
    approve = dag.get_task("approve")
    assert approve.response_timeout.total_seconds() == 5400
    assert approve.defaults is None  # else the scheduler would answer in the human's place
    given, skipped = concluded(dag, {"error": "nobody answered", "error_type": "timeout"})
    assert skipped == ["register"]
    assert rejection_words(dag, given) == ["reject", "--run", "/runs/x"]


def test_an_answer_that_airflow_could_not_read_is_no_no(load):
    from airflow.providers.standard.exceptions import HITLTriggerEventError

    with pytest.raises(HITLTriggerEventError):
        concluded(load(), {"error": "unreadable", "error_type": "unknown"})


@pytest.mark.parametrize("answer", [None, {"chosen_options": ["Approve"]}])
def test_a_no_that_nobody_said_is_not_put_on_record(load, answer):
    from airflow.sdk.exceptions import AirflowFailException

    with pytest.raises(AirflowFailException, match="no human's no is on record"):
        rejection_words(load(), answer and answered(**answer))


def question(dag, champion: str | None, **params: str) -> tuple[str, str]:
    """Subject and text of the question, as an approver gets them."""
    found = {"summary": {"champion": champion}, "brief": "**The gate blessed this model**: 61 of 61 promises kept.\n"}
    found |= {"report_link": "#/report.html"}
    values = {"ti": SimpleNamespace(xcom_pull={"validate": found}.get), "partition_key": "2026-11-05", "params": params}
    values |= dag.user_defined_macros
    approve, env = dag.get_task("approve"), dag.get_template_env()
    return approve.render_template(approve.subject, values, env), approve.render_template(approve.body, values, env)


def test_the_approver_reads_verdict_report_champion_and_what_follows(load):
    dag = load(SPIRA_MLFLOW_UI="http://ward-server:5000/", SPIRA_APPROVAL_HOURS="24")
    subject, text = question(dag, "2026-11-01-0a1b2c3d")
    assert subject == "Serve the model of partition 2026-11-05?"
    assert text.strip().startswith("**The gate blessed this model**: 61 of 61 promises kept.")
    assert "[Read the report](http://ward-server:5000/#/report.html)" in text
    assert "it answers every request from then on." in text
    assert "nothing is registered, and `2026-11-01-0a1b2c3d` goes on serving. The run ends as refused." in text
    assert "**No answer in 24 hours** counts as a no." in text


def test_the_question_without_a_champion_and_for_a_challenger(load):
    subject, text = question(load(), None, stage="challenger")
    assert subject == "Try the model of partition 2026-11-05?"
    assert "it is loaded beside the champion; it answers nobody." in text
    assert "and nothing is served. The run" in text


@pytest.mark.parametrize(
    ("gpus", "pools"), [("none", {"default_pool"}), ("all", {"default_pool", "gpu"}), ("1", {"default_pool", "gpu"})]
)
def test_gpu_tasks_queue_for_the_gpu(load, gpus, pools):
    dag = load(SPIRA_GPUS=gpus)
    assert {task.pool for task in dag.tasks} == pools
    assert {t.task_id for t in dag.tasks if t.pool == "gpu"} in (set(), {"train", "validate"})


def test_assets(load):
    outlets = {task.task_id: [asset.name for asset in task.outlets] for task in load().tasks if task.outlets}
    assert outlets == {"features": ["spira/features"], "register": ["spira/champion"]}


def test_the_form_is_typed_bounded_and_explained(load):
    params = load().params
    for name in params:
        param = params.get_param(name)
        assert param.description, name
        assert ("section" in param.schema) == ("." in name), name
        param.resolve()  # the default is valid
    epochs = params.get_param("train.epochs")
    assert epochs.value is None  # as the preset says
    assert epochs.schema["minimum"] == 1
    assert "Empty: as the preset says (cough 30, default 60" in epochs.description
    assert "Untouched: as the preset says (cough false" in params.get_param("train_each").description  # a switch
    assert params.get_param("preset").schema["enum"] == ["cough", "default", "fast", "spira_v1", "ward"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("train.epochs", 0), ("train.epochs", 2.5), ("train.device", "tpu"), ("partition", "yesterday"), ("preset", "no")],
)
def test_the_form_refuses_what_setup_would_refuse(load, name, value):
    from airflow.sdk.exceptions import ParamValidationError

    with pytest.raises(ParamValidationError):
        load().params.get_param(name).resolve(value)


def test_wrong_settings_are_named(load):
    with pytest.raises(ValueError, match="SPIRA_RUNTIME is 'podman'; allowed: docker, process"):
        load(SPIRA_RUNTIME="podman")
    with pytest.raises(ValueError, match="SPIRA_GPUS is 'two'"):
        load(SPIRA_RUNTIME="process", SPIRA_GPUS="two")
    for hours in ("0", "soon"):
        with pytest.raises(ValueError, match=f"SPIRA_APPROVAL_HOURS is '{hours}'; allowed: how many"):
            load(SPIRA_RUNTIME="process", SPIRA_APPROVAL_HOURS=hours)
    for keep in ("1", "all"):
        with pytest.raises(ValueError, match=f"SPIRA_KEEP is '{keep}'; allowed: how many versions"):
            load(SPIRA_RUNTIME="process", SPIRA_KEEP=keep)
    with pytest.raises(ValueError, match="SPIRA_PRESET is 'slow'; allowed: cough, default, fast, spira_v1, ward"):
        load(SPIRA_PRESET="slow")


def test_only_register_is_told_how_many_versions_keep_their_archives(load):
    dag = load(SPIRA_RUNTIME="docker", SPIRA_KEEP="4")
    told = {task.task_id for task in dag.tasks if "SPIRA_KEEP" in getattr(task, "environment", {})}
    assert told == {"register"}
    assert load(SPIRA_RUNTIME="process", SPIRA_KEEP="4").get_task("register").environment["SPIRA_KEEP"] == "4"


def test_scheduled_runs_take_the_preset_of_the_setting(load):
    assert load().params.get_param("preset").value == "default"
    assert load(SPIRA_PRESET="fast").params.get_param("preset").value == "fast"


def test_the_report_is_one_click_from_validate(load, monkeypatch):
    from airflow.serialization.serialized_objects import DagSerialization

    dag = load()
    links = {task.task_id: [link.name for link in task.operator_extra_links] for task in dag.tasks}
    assert {name for name, found in links.items() if found} == {"validate"}
    kept = DagSerialization.from_dict(DagSerialization.to_dict(dag)).get_task("validate")
    assert [link.name for link in kept.operator_extra_links] == ["Report"]
    task = dag.get_task("validate")
    (link,) = task.operator_extra_links
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert link.get_link(task, ti_key=None) == ""  # the step ended without a report
    task.report = "#/experiments/1/runs/2/artifacts/validate/report.html"
    monkeypatch.setenv("SPIRA_MLFLOW_UI", "http://127.0.0.1:5000")
    assert link.get_link(task, ti_key=None) == f"http://127.0.0.1:5000/{task.report}"
