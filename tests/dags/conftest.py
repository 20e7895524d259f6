"""The DAG is tested in the orchestration environment, without services. `make test` runs these there."""

import sys
from pathlib import Path

import pytest

DAGS = Path(__file__).resolve().parents[2] / "dags"


@pytest.fixture(scope="session", autouse=True)
def airflow_home(tmp_path_factory):
    """An Airflow of the tests' own; set before Airflow is imported, since it reads its settings then."""
    assert "airflow" not in sys.modules
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
        patch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
        patch.setenv("SPIRA_RUNTIME", "process")
        patch.syspath_prepend(str(DAGS))
        yield


@pytest.fixture
def load(monkeypatch):
    """The DAG as a fresh parse sees it, under the given settings."""

    def parse(**settings: str):
        for name in ("SPIRA_RUNTIME", "SPIRA_GPUS", "SPIRA_TRAIN", "SPIRA_IMAGE", "MLFLOW_TRACKING_URI"):
            monkeypatch.delenv(name, raising=False)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        for module in ("spira_training", "step", "step_outcome"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        import spira_training

        return spira_training.dag

    return parse
