"""What is served is what MLflow calls the champion: mends the two where a kill or a restart parted them.

A change of the default version is announced in the model store before it begins. Where the server then answers from
the announced version, the change took place and the aliases follow it; in every other case the server is given the
champion back: after a restart that forgot, after a store of snapshots that was lost, after a change made by hand.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serve import torchserve
from serve.torchserve import Server
from spira_train.outcome import Refused, TryAgain
from spira_train.progress import say
from spira_train.registry import CHAMPION, PREVIOUS, Registry, follow
from spira_train.store import digest_file, disk_errors, scratch, write_atomic


def run(*, mlflow: str, server: Server, models: Path) -> dict[str, Any]:
    """Mend what differs, keep champion and previous version loaded, unload what nobody named.

    Returns {champion, previous, mended: what was done, in sentences}. Raises `Refused` where the champion's archive is
    in neither store, `TryAgain` where MLflow or TorchServe is away.
    """
    with torchserve.alone(models):
        registry = Registry(mlflow)
        mended = settle(registry, server, models)
        versions = registry.versions()
        named = {alias: versions[number] for alias, number in registry.aliases().items()}
        if (warm := named.get(PREVIOUS)) and (said := _ready(registry, server, models, warm)):
            mended.append(said)
        mended += unload(registry, server)
    for line in mended:
        say(f"reconcile: {line}")
    found = {alias: named[alias].tags["version"] if alias in named else None for alias in (CHAMPION, PREVIOUS)}
    return found | {"mended": mended}


def settle(registry: Registry, server: Server, models: Path) -> list[str]:
    """Make the champion the default version, or the default version the champion (see above); what was done.

    Whoever calls it holds the model store (`torchserve.alone`).
    """
    served, announced = torchserve.status(server), _announced(models, server)
    said = follow(registry, served, announced)
    mended = [said] if said else []
    number = registry.aliases().get(CHAMPION)
    if number:
        champion = registry.versions()[number]
        mended += [said] if (said := _ready(registry, server, models, champion)) else []
        if torchserve.status(server)["default"] != (version := champion.tags["version"]):
            torchserve.promote(server, version)
            mended.append(f"{version} is the champion and is the default version again")
    else:  # TorchServe makes its very first version the default: nobody verified it
        for version in sorted(served["versions"], key=lambda one: one == served["default"]):  # the default goes last
            torchserve.unregister(server, version)
            mended.append(f"{version} is unloaded: there is no champion, and it was never promoted")
    done(models, server)
    return mended


def announce(models: Path, server: Server, version: str) -> None:
    """Say that the default version becomes `version`; the server is changed next, the aliases after it."""
    write_atomic(_place(models, server), json.dumps({"version": version}).encode())


def done(models: Path, server: Server) -> None:
    """Server and aliases agree: the announced change is over."""
    with disk_errors(str(models)):
        _place(models, server).unlink(missing_ok=True)


def unload(registry: Registry, server: Server) -> list[str]:
    """Unload versions without an alias: each costs a process. Former champions, what kills left, what came by hand."""
    versions, served = registry.versions(), torchserve.status(server)
    kept = {versions[number].tags.get("version") for number in registry.aliases().values()} | {served["default"]}
    extra = sorted(served["versions"].keys() - kept)
    for version in extra:
        torchserve.unregister(server, version)
    return [f"{version} is unloaded; its archive stays in the model store" for version in extra]


def fetched(registry: Registry, server: Server, models: Path, known: Any, use: Callable[[Path], str]) -> str:
    """What `use` gives for the archive of a `known` version: the model store's, or else MLflow's.

    Raises `Refused` where neither has it as it was registered.
    """
    version, wanted = known.tags["version"], known.tags["archive"]
    stored = models / f"{server.name}-{version}.mar"
    if stored.is_file() and digest_file(stored) == wanted:
        return use(stored)
    with scratch("spira-archive-") as private:
        try:
            archive = registry.download(known.version, private)
        except TryAgain as error:
            raise Refused(f"{version}: its archive is neither in {models} nor in MLflow ({error})") from None
        if digest_file(archive) != wanted:
            raise Refused(f"{version}: MLflow's archive is not the one that was registered ({wanted[:12]})")
        return use(archive)


def _ready(registry: Registry, server: Server, models: Path, known: Any) -> str | None:
    """Load a version, or start its worker, where it is not ready; what was done."""
    version = known.tags["version"]
    if torchserve.status(server)["versions"].get(version, {}).get("ready"):
        return None
    how = fetched(registry, server, models, known, lambda file: torchserve.register(server, file, version, models))
    return f"{version} is {how} and READY again"


def _place(models: Path, server: Server) -> Path:
    return models / f".{server.name}.change.json"


def _announced(models: Path, server: Server) -> str | None:
    try:
        return str(json.loads(_place(models, server).read_text())["version"])
    except FileNotFoundError:
        return None
