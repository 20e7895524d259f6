"""The model repository: MLflow's registered model, its versions, its aliases.

`champion` is what is served by default, `previous` what a rollback gives back, `challenger` what is being tried. How
the server and the aliases change together: `spira_train/reconcile.py`.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import requests

from spira_train.outcome import TryAgain
from spira_train.store import scratch

MODEL = "spira"
EXPERIMENT = "spira"
CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
# MLflow 3.17 takes 100,000 characters for a tag of a version, older servers 5,000.
TAG_LENGTH = 5000
# MLflow's own patience is seven retries of two minutes.
_HASTE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
T = TypeVar("T")


class Registry:
    """The registered model `spira` at `uri`. Every call raises `TryAgain` where MLflow is away."""

    def __init__(self, uri: str):
        self.uri = uri
        for name, value in _HASTE.items():
            os.environ.setdefault(name, value)
        if re.match("https?://", uri):
            _knock(uri)
        from mlflow import MlflowClient  # a second of imports

        self.client = MlflowClient(uri, registry_uri=uri)

    def version(self, archive: str) -> Any | None:
        """The model version made from the archive with this SHA-256, or None."""
        found = self._guard(lambda: self.client.search_model_versions(f"name='{MODEL}'"))
        return next((version for version in found if version.tags.get("archive") == archive), None)

    def versions(self) -> dict[str, Any]:
        """All versions, by number."""
        return {v.version: v for v in self._guard(lambda: self.client.search_model_versions(f"name='{MODEL}'"))}

    def create(self, *, archive: Path, run_id: str, tags: Mapping[str, str]) -> str:
        """The number of the version for `archive`, made unless it is there; `tags` must hold `archive`, its SHA-256."""
        known = self.version(tags["archive"])
        if known:
            return str(known.version)

        def make() -> str:
            if not self.client.search_registered_models(f"name='{MODEL}'"):
                self.client.create_registered_model(MODEL, description="SPIRA: respiratory insufficiency in speech")
            self.client.log_artifact(run_id, str(archive), "package")
            source = f"{self.client.get_run(run_id).info.artifact_uri}/package"
            fitting = {name: _fitting(value) for name, value in tags.items()}
            return str(self.client.create_model_version(MODEL, source, run_id, tags=fitting).version)

        return self._guard(make)

    def run(self, known: str | None, name: str, tags: Mapping[str, str], same: Mapping[str, str]) -> str:
        """The MLflow run `known`, where the server has it; else one already made for `name`; else a new one.

        same: what a version's tags must say for its run to be taken. The evidence of any other version stays as it is.
        """
        from mlflow.exceptions import MlflowException

        def find() -> str:
            experiment = self.client.get_experiment_by_name(EXPERIMENT)
            identity = experiment.experiment_id if experiment else self.client.create_experiment(EXPERIMENT)
            found = [run.info.run_id for run in self.client.search_runs([identity], f"attributes.run_name = '{name}'")]
            if known:
                try:
                    found.insert(0, self.client.get_run(known).info.run_id)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise
            for each in found:
                versions = self.client.search_model_versions(f"run_id = '{each}'")
                if all(same.items() <= version.tags.items() for version in versions):
                    return str(each)
            made = self.client.create_run(identity, run_name=name, tags=dict(tags)).info.run_id
            self.client.set_terminated(made)
            return str(made)

        return self._guard(find)

    def log(self, run_id: str, *, files: Mapping[str, Path], metrics: Mapping[str, float]) -> None:
        """Keep `files` (folder in the run's artifacts -> file) and `metrics` with the run."""

        def send() -> None:
            from mlflow.entities import Metric

            for folder, file in files.items():
                self.client.log_artifact(run_id, str(file), folder.rpartition("/")[0] or None)
            now = int(datetime.now(UTC).timestamp() * 1000)
            self.client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in metrics.items()])

        self._guard(send)

    def refused(self, count: int) -> list[dict[str, Any]]:
        """What the gate or a human refused, newest first: {partition, at (datetime), reasons}, at most `count`."""

        def search(condition: str, newest: str) -> list[Any]:
            experiment = self.client.get_experiment_by_name(EXPERIMENT)
            if not experiment:
                return []
            place, order = [experiment.experiment_id], [f"{newest} DESC"]
            return list(self.client.search_runs(place, condition, max_results=count, order_by=order))

        def read() -> list[dict[str, Any]]:
            by_the_gate = [
                {
                    "partition": run.data.tags.get("partition", ""),
                    "at": datetime.fromtimestamp((run.info.end_time or run.info.start_time) / 1000, UTC),
                    "reasons": [reason for reason in run.data.tags.get("reasons", "").split("; ") if reason],
                }
                for run in search("tags.verdict = 'refused'", "attributes.start_time")
            ]
            by_people = [
                {
                    "partition": run.data.tags.get("partition", ""),
                    "at": datetime.fromisoformat(run.data.tags["rejected_at"]),
                    "reasons": [run.data.tags["rejected"]],
                }
                for run in search("tags.rejected LIKE '%'", "tags.rejected_at")
            ]
            return sorted(by_the_gate + by_people, key=lambda one: one["at"], reverse=True)[:count]

        return self._guard(read)

    def note(self, run_id: str, tags: Mapping[str, str], files: Mapping[str, Path]) -> str:
        """Set tags of an MLflow run and keep `files` with it, unless it carries just these tags already.

        Returns where the run's artifacts are in MLflow's pages, to be put behind its address.
        """
        tags = {name: _fitting(value) for name, value in tags.items()}
        known = self._guard(lambda: self.client.get_run(run_id))
        place = f"#/experiments/{known.info.experiment_id}/runs/{run_id}/artifacts"
        if tags.items() <= known.data.tags.items():
            return place
        self.log(run_id, files=files, metrics={})

        def send() -> None:
            for name, value in tags.items():
                self.client.set_tag(run_id, name, value)

        self._guard(send)
        return place

    def aliases(self) -> dict[str, str]:
        """Alias -> version number; empty where nothing is registered."""

        def read() -> dict[str, str]:
            if not self.client.search_registered_models(f"name='{MODEL}'"):
                return {}
            return {name: str(version) for name, version in self.client.get_registered_model(MODEL).aliases.items()}

        return self._guard(read)

    def point(self, alias: str, version: str | None) -> None:
        """Let `alias` name `version`, or nothing."""
        if version is None:
            self._guard(lambda: self.client.delete_registered_model_alias(MODEL, alias))
        else:
            self._guard(lambda: self.client.set_registered_model_alias(MODEL, alias, version))

    def tag(self, version: str, name: str, value: str | None) -> None:
        """Set a tag of a version, or remove it."""
        if value is None:
            self._guard(lambda: self.client.delete_model_version_tag(MODEL, version, name))
        else:
            self._guard(lambda: self.client.set_model_version_tag(MODEL, version, name, _fitting(value)))

    def retire(self, version: str) -> bool:
        """Keep `version` as a record, tagged `retired`, without its archive; False where MLflow does not delete it."""

        def delete() -> bool:
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            known = self.client.get_model_version(MODEL, version)
            place = get_artifact_repository(
                self.client.get_run(str(known.run_id)).info.artifact_uri, tracking_uri=self.uri
            )
            try:
                for path in self._archives(known):
                    place.delete_artifacts(path)
            except (requests.HTTPError, NotImplementedError):  # a server that hands artifacts out, but deletes none
                return False
            return True

        deleted = self._guard(delete)
        self.tag(version, "retired", "true")  # last: a kill before it is healed by the next run
        return deleted

    def download(self, version: str, folder: Path) -> Path:
        """The archive of `version`, copied into `folder`."""

        def fetch() -> Path:
            known = self.client.get_model_version(MODEL, version)
            for path in self._archives(known):
                return Path(self.client.download_artifacts(str(known.run_id), path, str(folder)))
            raise OSError(f"the archive of version {version} is not there")

        return self._guard(fetch)

    def recordings(self, version: str) -> dict[str, str] | None:
        """What `version` was trained on (see `train.trained_on`); None where that is not on record."""
        known = self._guard(lambda: self.client.get_model_version(MODEL, version))
        found = self._guard(lambda: self.client.list_artifacts(str(known.run_id), "train"))
        if not any(entry.path == "train/recordings.json" for entry in found):
            return None
        with scratch("spira-recordings-") as folder:
            file = self._guard(
                lambda: self.client.download_artifacts(str(known.run_id), "train/recordings.json", str(folder))
            )
            return dict(json.loads(Path(file).read_text()))

    def _archives(self, known: Any) -> list[str]:
        """Where the archive of a version is among its run's artifacts."""
        found = (entry.path for entry in self.client.list_artifacts(known.run_id, "package"))
        return [path for path in found if path.endswith(f"-{known.tags['version']}.mar")]

    def _guard(self, call: Callable[[], T]) -> T:
        from mlflow.exceptions import MlflowException

        try:
            return call()
        except (MlflowException, requests.RequestException, OSError) as error:
            first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise TryAgain(f"MLflow at {self.uri}: {first}; look at the server and run again") from None


def promote(registry: Registry, version: str) -> None:
    """Make `version` the champion and the champion of before the previous one. Safe to repeat after a kill anywhere."""
    aliases = registry.aliases()
    champion = aliases.get(CHAMPION)
    if champion != version:
        if champion:
            registry.point(PREVIOUS, champion)
        registry.point(CHAMPION, version)
    if champion != version or registry.versions()[version].tags.get("promoted") != "true":
        registry.tag(version, "promoted_at", _now())
        registry.tag(version, "promoted", "true")
    if aliases.get(CHALLENGER) == version:
        registry.point(CHALLENGER, None)


def rollback(registry: Registry, version: str, to: str | None) -> None:
    """Take the champion's place from `version` and give it to `to`. Safe to repeat after a kill anywhere."""
    aliases = registry.aliases()
    registry.tag(version, "promoted", "false")
    if aliases.get(CHAMPION) == version:
        registry.point(CHAMPION, to)
        if to:
            registry.tag(to, "promoted_at", _now())
    if to and aliases.get(PREVIOUS) == to:
        registry.point(PREVIOUS, None)


def follow(registry: Registry, served: Mapping[str, Any], announced: str | None) -> str | None:
    """Let the aliases follow a server's `status` where a change was cut off; returns what was mended, as a sentence.

    announced: the version that was to become the default. Where another one is, the aliases stay as they are.
    """
    aliases, versions = registry.aliases(), registry.versions()
    champion, previous, challenger = map(aliases.get, (CHAMPION, PREVIOUS, CHALLENGER))
    if previous and previous == champion:  # killed between two aliases
        registry.point(PREVIOUS, None)
    if challenger and versions[challenger].tags["version"] not in served["versions"]:
        registry.point(CHALLENGER, None)
    default = served["default"]
    number = next((number for number, known in versions.items() if known.tags.get("version") == default), None)
    if number is None or (number != champion and default != announced):
        return None
    if number == champion:
        promote(registry, number)  # its tags may be missing
        return None
    if champion and versions[number].tags.get("promoted") == "true":  # it was the champion before
        rollback(registry, champion, number)
        return f"a rollback to {default} was cut off: it is the champion again"
    promote(registry, number)
    return f"the promotion of {default} was cut off: it is the champion now"


def named(uri: str, alias: str) -> dict[str, str] | None:
    """The tags of the version that `alias` names, or None; by one plain request, as MLflow's client takes a second."""
    if not re.match("https?://", uri):
        registry = Registry(uri)
        number = registry.aliases().get(alias)
        return dict(registry.versions()[number].tags) if number else None
    found = _plain(uri, "registered-models/alias", {"name": MODEL, "alias": alias})
    return _tags(found["model_version"]) if found else None


def remembered(uri: str) -> list[dict[str, str]]:
    """The tags of all versions, by one plain request as well."""
    if not re.match("https?://", uri):
        return [dict(version.tags) for version in Registry(uri).versions().values()]
    found = _plain(uri, "model-versions/search", {"filter": f"name='{MODEL}'", "max_results": "10000"})
    return [_tags(version) for version in (found or {}).get("model_versions", [])]


def _plain(uri: str, path: str, params: Mapping[str, str]) -> dict[str, Any] | None:
    try:
        answer = requests.get(f"{uri.rstrip('/')}/api/2.0/mlflow/{path}", params=params, timeout=(3, 10))
        if answer.status_code in (400, 404):  # no such alias, or no model yet
            return None
        answer.raise_for_status()
        return dict(answer.json())
    except (requests.RequestException, ValueError):
        raise TryAgain(f"MLflow at {uri} does not answer; start it and run again") from None


def _tags(version: Mapping[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in version.get("tags", [])}


def _fitting(value: str) -> str:
    return value if len(value) <= TAG_LENGTH else value[: TAG_LENGTH - 1] + "…"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _knock(uri: str) -> None:
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=(3, 10)).raise_for_status()
    except requests.RequestException:
        raise TryAgain(f"MLflow at {uri} does not answer; start it and run again") from None
