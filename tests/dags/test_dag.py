"""The shape of `spira_training`: it parses, alone, and its tasks are wired as the documentation says."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

DAGS = Path(__file__).resolve().parents[2] / "dags"
CHAIN = ["setup", "extract", "features", "train", "validate", "verdict", "package", "approve", "register", "verify"]


def test_the_folder_parses_without_errors(monkeypatch):
    monkeypatch.setenv("SPIRA_RUNTIME", "process")
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(DAGS))
    assert bag.import_errors == {}
    assert list(bag.dags) == ["spira_training"]


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


def test_edges(load):
    dag = load()
    edges = {(task.task_id, down) for task in dag.tasks for down in task.downstream_task_ids}
    assert edges == {*itertools.pairwise(CHAIN), ("verdict", "refused"), ("package", "register")}


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
    assert "Empty: as the preset says (default 100" in epochs.description
    assert "Untouched: as the preset says (default false" in params.get_param("train_each").description  # a switch
    assert params.get_param("preset").schema["enum"] == ["default", "fast", "spira_v1"]


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
    with pytest.raises(ValueError, match="SPIRA_PRESET is 'slow'; allowed: default, fast, spira_v1"):
        load(SPIRA_PRESET="slow")


def test_scheduled_runs_take_the_preset_of_the_setting(load):
    assert load().params.get_param("preset").value == "default"
    assert load(SPIRA_PRESET="fast").params.get_param("preset").value == "fast"
