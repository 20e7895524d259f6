"""Ask what is served now for the golden recordings; give the place back to the previous version where it is wrong."""

from pathlib import Path
from typing import Any

from serve import torchserve
from serve.torchserve import Server
from spira_train.config import Config
from spira_train.outcome import Refused, TryAgain
from spira_train.progress import say
from spira_train.reconcile import announce, done, settle, unload
from spira_train.registry import Registry, rollback
from spira_train.step import perform
from spira_train.store import digest_json, local_lake, read_report


def run(*, run: Path, config: Config, models: Path, mlflow: str, server: Server) -> dict[str, Any]:
    """Verify the default path of the inference API for a run that was registered; returns the report.

    Raises `Refused` after a rollback (server and aliases), naming what was wrong and what is served now.
    """
    registered = read_report(*local_lake(run / "register"))
    if registered is None:
        raise Refused(f"{run / 'register'}: not finished; run `spira-train register` first")
    summary = registered["summary"]
    version, number, champion = summary["version"], summary["mlflow_version"], summary["champion"]
    if champion != version:
        return _report(
            run, {"version": version, "champion": champion, "message": f"{champion} is the champion; nothing to verify"}
        )
    if torchserve.status(server)["default"] != version:  # changed since, or cut off in the middle of it
        with torchserve.alone(models):
            registry = Registry(mlflow)
            for mended in [*settle(registry, server, models), *unload(registry, server)]:
                say(f"verify: {mended}")
    default = torchserve.status(server)["default"]
    if default is not None and default == summary.get("previous"):
        raise Refused(f"{version} was rolled back before: {default} is served again and is the champion")
    if default != version:
        raise Refused(
            f"{server.name}: the default version is {default}, not {version}; "
            "somebody changed it since. Run `spira-train register` to promote this one again"
        )
    try:
        found = torchserve.verify(server, None, run / "validate" / "golden", expected=version)
    except Refused as error:
        instead = _roll_back(mlflow, server, models, version, number, summary.get("previous"))
        raise Refused(f"{error}. {instead}") from None
    lasting = {name: found[name] for name in ("version", "recordings")}
    return _report(run, lasting | {"champion": version})


def _roll_back(mlflow: str, server: Server, models: Path, version: str, number: str, earlier: str | None) -> str:
    """Server first, aliases second: people are answered by the server. Returns what happened, as a sentence."""
    if earlier is None:  # it goes on answering, so it stays the champion
        return f"There is no previous version to roll back to: {version} is still served and must be looked at now"
    with torchserve.alone(models):
        announce(models, server, earlier)
        torchserve.rollback(server, earlier)
        torchserve.unregister(server, version)
        try:
            registry = Registry(mlflow)
            known = registry.versions().items()
            rollback(registry, number, next((n for n, v in known if v.tags.get("version") == earlier), None))
        except TryAgain as error:  # the next `reconcile` tells it
            return f"Rolled back: {earlier} is served again; MLflow still calls {version} the champion ({error})"
        done(models, server)
    return f"Rolled back: {earlier} is served again and is the champion"


def _report(run: Path, summary: dict[str, Any]) -> dict[str, Any]:
    return perform("verify", digest_json(summary), *local_lake(run / "verify"), lambda _: summary, {})
