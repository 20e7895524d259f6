"""Give the place back to the previous version, or to an earlier one: the server first, at once; MLflow after it."""

from pathlib import Path
from typing import Any

from serve import torchserve
from serve.torchserve import Server
from spira_train.outcome import BadInput
from spira_train.progress import say
from spira_train.reconcile import announce, done, fetched
from spira_train.registry import CHAMPION, PREVIOUS, Registry, named, remembered, rollback


def run(*, mlflow: str, server: Server, models: Path, to: str = "") -> dict[str, Any]:
    """Make `to` (the previous version, where empty) the default one and the champion; returns {champion, was}.

    A version that is loaded, as the previous one always is, answers before MLflow is written to. Raises `BadInput`
    where there is nothing to go back to or `to` never was a champion, `TryAgain` where a server is away: if that is
    MLflow after the change, the next `reconcile` tells it.
    """
    with torchserve.alone(models):
        served = torchserve.status(server)
        target = named(mlflow, PREVIOUS) if not to else _earlier(mlflow, to)
        if target is None:
            raise BadInput(f"{server.name}: there is no previous version to roll back to; name one with --to")
        version, was = target["version"], served["default"]
        if version == was:
            raise BadInput(f"{version} is the default version already; nothing was changed")
        announce(models, server, version)
        if version not in served["versions"]:
            registry = Registry(mlflow)
            fetched(
                registry, server, models, registry.version(target["archive"]),
                lambda archive: torchserve.register(server, archive, version, models),
            )  # fmt: skip
        torchserve.rollback(server, version)
        say(f"rollback: {version} answers now; before it was {was}")
        registry = Registry(mlflow)
        champion, known = registry.aliases().get(CHAMPION), registry.version(target["archive"])
        if champion and known:
            rollback(registry, champion, str(known.version))
        done(models, server)
    return {"champion": version, "was": was}


def _earlier(mlflow: str, version: str) -> dict[str, str]:
    """The tags of `version`; raises `BadInput` unless it was a champion once."""
    known = remembered(mlflow)
    found = next((tags for tags in known if tags.get("version") == version), None)
    if found is None or "promoted" not in found:
        champions = ", ".join(sorted(tags["version"] for tags in known if "promoted" in tags)) or "none"
        raise BadInput(f"{version}: never was the champion, so nothing speaks for it; these were: {champions}")
    return found
