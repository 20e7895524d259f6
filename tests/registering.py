"""Registration as the tests go through it: a packaged run, a real TorchServe, a real MLflow."""

import json
from pathlib import Path

import pytest
from runs import held_against

from serve import torchserve as ts
from serve.torchserve import Server
from spira_train import register, verify
from spira_train.config import Config
from spira_train.registry import Registry

Made = tuple[Path, Config, dict]  # as `runs.packaged` gives it
Place = tuple[Server, Path, str]  # server, its model store, MLflow


def go(made: Made, place: Place, *, validated: bool = True, **options) -> dict:
    """Register a run; validated: after validation held it against what is served now."""
    server, store, mlflow = place
    default = ts.status(server)["default"] if validated else None
    if default and default != made[2]["version"]:
        known = Registry(mlflow).versions().values()
        archive = next((v.tags["archive"] for v in known if v.tags["version"] == default), None)
        held_against(made[0], default, archive)
    return register.run(run=made[0], config=made[1], models=store, mlflow=mlflow, server=server, **options)


def check(made: Made, place: Place) -> dict:
    return verify.run(run=made[0], config=made[1], models=place[1], mlflow=place[2], server=place[0])


def champion_of(place: Place) -> tuple[str | None, str | None, str | None]:
    """(default on the server, version of alias champion, version of alias previous)."""
    known = Registry(place[2])
    aliases, versions = known.aliases(), known.versions()
    named = {alias: versions[number].tags["version"] for alias, number in aliases.items()}
    return ts.status(place[0])["default"], named.get("champion"), named.get("previous")


def loaded(place) -> set[str]:
    return set(ts.status(place[0])["versions"])


def die(patch: pytest.MonkeyPatch, owner: object, name: str, *, at: str = "", after: bool = True) -> None:
    """Let a call of `owner.name`, the one that has `at` among its arguments, be the last thing that happens."""
    real = getattr(owner, name)

    def killed(*args: object, **options: object) -> object:
        if at and at not in args:
            return real(*args, **options)
        if after:
            real(*args, **options)
        raise KeyboardInterrupt

    patch.setattr(owner, name, killed)


def spoil(run: Path) -> None:
    """Let validation have found something else, as if the server now answered wrongly."""
    file = run / "validate" / "golden" / "golden.json"
    entries = json.loads(file.read_text())
    entries[0]["probability"] += 1e-4
    file.write_text(json.dumps(entries))
