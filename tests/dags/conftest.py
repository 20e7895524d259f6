"""The DAG is tested in the orchestration environment, without services. `make test` runs these there."""

import os
import sys
from pathlib import Path

import pytest
from no_skips import pytest_runtest_makereport  # noqa: F401 - a hook

DAGS = Path(__file__).resolve().parents[2] / "dags"
MODULES = [file.stem for file in DAGS.glob("*.py")]


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
        for name in [n for n in os.environ if n.startswith("SPIRA_") or n == "MLFLOW_TRACKING_URI"]:
            monkeypatch.delenv(name)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        for module in MODULES:
            monkeypatch.delitem(sys.modules, module, raising=False)
        import spira_training

        return spira_training.dag

    return parse
