"""Live curves in MLflow. A tracking server that is away never stops a training: the curves are in the run as well."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spira_train.config import Config
from spira_train.progress import say
from spira_train.store import write_atomic

EXPERIMENT = "spira"
# Fail within seconds, not minutes: MLflow's own default is seven retries with back-off.
_HASTE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class Tracker:
    """One MLflow run, kept over restarts of the step by `mlflow.json` in the run folder."""

    def __init__(self, uri: str | None, run: Path, config: Config):
        self.client: Any = None
        self.run_id = ""
        self.uri = uri
        if uri:
            self._guard(lambda: self._open(run, config))

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve in `values`."""

        def send() -> None:
            from mlflow.entities import Metric

            now = _milliseconds()
            self.client.log_batch(self.run_id, metrics=[Metric(k, v, now, epoch) for k, v in values.items()])

        if self.client:
            self._guard(send)

    def finish(self, artifacts: Path) -> None:
        """Keep the finished files beside the curves and close the run."""

        def send() -> None:
            self.client.log_artifacts(self.run_id, str(artifacts), "train")
            self.client.set_terminated(self.run_id)

        if self.client:
            self._guard(send)

    def _open(self, run: Path, config: Config) -> None:
        for name, value in _HASTE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        client = MlflowClient(self.uri)
        note = run / "mlflow.json"
        known = client.get_experiment_by_name(EXPERIMENT)
        experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT)
        if note.exists():
            self.run_id = json.loads(note.read_text())["run_id"]
            try:
                if client.search_model_versions(f"run_id = '{self.run_id}'"):
                    self.run_id = ""  # a version came of it, whose curves stay as they are
                else:
                    client.update_run(self.run_id, status="RUNNING")
            except MlflowException:
                self.run_id = ""  # a new tracking server does not know it
        if not self.run_id:
            tags = {"partition": config.partition, "run": run.name}
            self.run_id = client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
            for name, value in _flat(config.model_dump(mode="json")).items():
                client.log_param(self.run_id, name, value)
            write_atomic(note, json.dumps({"run_id": self.run_id}).encode())
        self.client = client

    def _guard(self, send: Any) -> None:
        try:
            send()
        except Exception as error:  # noqa: BLE001 - whatever it is, training is worth more
            self.client = None
            say(f"MLflow at {self.uri} does not answer ({type(error).__name__}); going on, curves are in curves.json")


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in nested.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def _milliseconds() -> int:
    import time

    return int(time.time() * 1000)
