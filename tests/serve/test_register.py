"""From a blessed archive to the champion, against a real MLflow and a real TorchServe."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from runs import archive_of, free_ports, packaged, wav
from servers import Running

from serve import torchserve as ts
from serve.torchserve import Server
from spira_train import register, registry, verify
from spira_train.config import Config
from spira_train.outcome import Refused, TryAgain
from spira_train.registry import Registry
from spira_train.store import digest_file

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]


@pytest.fixture
def place(torchserve: Running, mlflow: str, request: pytest.FixtureRequest):
    """(server under a name of its own, model store, MLflow with no versions)."""
    server = replace(torchserve.server, name=request.node.name.replace("[", "-").replace("]", "")[-40:])
    yield server, torchserve.store, mlflow
    client = Registry(mlflow).client
    for model in client.search_registered_models():
        client.delete_registered_model(model.name)
    for version in sorted(ts.status(server)["versions"], key=lambda v: v == ts.status(server)["default"]):
        ts.unregister(server, version)


def go(made: tuple[Path, Config, dict], place: tuple[Server, Path, str]) -> dict:
    server, store, mlflow = place
    return register.run(run=made[0], config=made[1], models=store, mlflow=mlflow, server=server)


def check(made: tuple[Path, Config, dict], place: tuple[Server, Path, str]) -> dict:
    return verify.run(run=made[0], config=made[1], mlflow=place[2], server=place[0])


def state(place: tuple[Server, Path, str]) -> tuple:
    """What a second run must not change: server, aliases, versions with their tags, archives in the store."""
    server, store, mlflow = place
    known = Registry(mlflow)
    versions = {number: (v.tags, v.last_updated_timestamp) for number, v in known.versions().items()}
    files = {f.name: (digest_file(f), f.stat().st_mtime_ns) for f in store.glob(f"{server.name}-*")}
    return ts.status(server), known.aliases(), versions, files


def champion_of(place: tuple[Server, Path, str]) -> tuple[str | None, str | None, str | None]:
    """(default on the server, version of alias champion, version of alias previous)."""
    known = Registry(place[2])
    aliases, versions = known.aliases(), known.versions()
    named = {alias: versions[number].tags["version"] for alias, number in aliases.items()}
    return ts.status(place[0])["default"], named.get("champion"), named.get("previous")


def test_two_generations_and_running_again_changes_nothing(place, tmp_path: Path) -> None:
    first, second = packaged(tmp_path, 1), packaged(tmp_path, 2, "2026-11-06")
    v1, v2 = first[2]["version"], second[2]["version"]
    assert go(first, place)["summary"]["champion"] == v1
    assert check(first, place)["summary"]["recordings"] == 3
    assert champion_of(place) == (v1, v1, None)
    go(second, place)
    check(second, place)
    assert champion_of(place) == (v2, v2, v1)
    before, report = state(place), (second[0] / "register" / "report.json").read_bytes()
    assert go(second, place)["cached"] is True
    assert check(second, place)["cached"] is True
    assert state(place) == before
    assert (second[0] / "register" / "report.json").read_bytes() == report

    tags = Registry(place[2]).version(second[2]["archive"]).tags
    assert tags["weights"] == second[2]["weights"]
    assert tags["partitions"] == "2026-11-06"
    assert {"blessing", "config", "inputs", "code", "train", "validate", "content"} <= tags.keys()

    # the first one again, as clearing an old task in Airflow does: the newer champion stays
    go(first, place)
    assert champion_of(place) == (v2, v2, v1)
    assert check(first, place)["summary"]["champion"] == v2


@pytest.mark.parametrize("where", ["torchserve.register", "torchserve.promote", "registry.promote"])
def test_a_kill_in_between_is_healed_by_running_again(
    place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    first, second = packaged(tmp_path, 1), packaged(tmp_path, 2)
    go(first, place)
    module, name = (ts, where.split(".")[1]) if where.startswith("torchserve") else (register, "promote")
    real = getattr(module, name)

    def killed(*args: object, **options: object) -> None:
        if where != "registry.promote":
            real(*args, **options)  # killed right after it
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, name, killed)
        go(second, place)
    go(second, place)
    assert champion_of(place) == (second[2]["version"], second[2]["version"], first[2]["version"])
    assert "challenger" not in Registry(place[2]).aliases()
    assert len(Registry(place[2]).versions()) == 2


def test_a_kill_between_the_aliases_is_healed(place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = packaged(tmp_path, 1), packaged(tmp_path, 2)
    go(first, place)
    real = Registry.point

    def killed(self: Registry, alias: str, version: str | None) -> None:
        real(self, alias, version)
        if alias == registry.PREVIOUS:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Registry, "point", killed)
        go(second, place)
    go(second, place)
    assert champion_of(place) == (second[2]["version"], second[2]["version"], first[2]["version"])


def test_only_champion_and_previous_stay_loaded(place, tmp_path: Path) -> None:
    made = [packaged(tmp_path, seed) for seed in (1, 2, 3)]
    for each in made:
        go(each, place)
    assert set(ts.status(place[0])["versions"]) == {facts["version"] for _, _, facts in made[1:]}
    assert len(list(place[1].glob(f"{place[0].name}-*.mar"))) == 3


def test_a_failed_verification_rolls_server_and_aliases_back(place, tmp_path: Path) -> None:
    first, second = packaged(tmp_path, 1), packaged(tmp_path, 2)
    go(first, place)
    go(second, place)
    _spoil(second[0])
    with pytest.raises(Refused, match=f"Rolled back: {first[2]['version']} is served again"):
        check(second, place)
    v1 = first[2]["version"]
    assert champion_of(place) == (v1, v1, None)
    assert set(ts.status(place[0])["versions"]) == {v1}
    assert ts.predict(place[0], wav()).json()["model"]["version"] == v1


def test_a_challenger_that_answers_otherwise_is_not_promoted(
    place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = packaged(tmp_path, 1), packaged(tmp_path, 2)
    go(first, place)
    monkeypatch.setattr(ts, "TOLERANCE", -1.0)
    with pytest.raises(Refused, match="was not promoted; what was served before goes on"):
        go(second, place)
    assert champion_of(place)[:2] == (first[2]["version"],) * 2
    assert set(ts.status(place[0])["versions"]) == {first[2]["version"]}


def test_with_no_previous_version_a_failed_verification_says_so(place, tmp_path: Path) -> None:
    first = packaged(tmp_path, 1)
    go(first, place)
    _spoil(first[0])
    with pytest.raises(Refused, match="no previous version to roll back to"):
        check(first, place)


@pytest.mark.parametrize("part", ["archive", "blessing", "package.json", "infra.json", "golden"])
def test_what_was_tampered_with_is_refused_before_anything_happens(place, tmp_path: Path, part: str) -> None:
    made = packaged(tmp_path, 1)
    file = {
        "archive": archive_of(made[0]),
        "blessing": made[0] / "validate" / "blessing.json",
        "package.json": made[0] / "package" / "package.json",
        "infra.json": made[0] / "package" / "infra.json",
        "golden": made[0] / "validate" / "golden" / "00.wav",
    }[part]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(Refused, match="was changed"):
        go(made, place)
    assert ts.status(place[0])["versions"] == {}
    assert Registry(place[2]).versions() == {}


def test_an_archive_without_its_blessing_is_refused(place, tmp_path: Path) -> None:
    made = packaged(tmp_path, 1)
    (made[0] / "validate" / "blessing.json").unlink()
    with pytest.raises(Refused, match="no quality blessing"):
        go(made, place)
    assert ts.status(place[0])["versions"] == {}


def test_an_archive_of_other_weights_is_refused(place, tmp_path: Path) -> None:
    first, second = packaged(tmp_path, 1), packaged(tmp_path, 2)
    shutil.rmtree(first[0] / "package")
    shutil.copytree(second[0] / "package", first[0] / "package")
    with pytest.raises(Refused, match=r"(carries|blesses) another"):
        go(first, place)
    assert ts.status(place[0])["versions"] == {}


def test_a_neighbour_that_is_away_is_named(place, tmp_path: Path) -> None:
    made, (port,) = packaged(tmp_path, 1), free_ports(1)
    away = f"http://127.0.0.1:{port}"
    server, store, mlflow = place
    with pytest.raises(TryAgain, match=f"MLflow at {away} does not answer"):
        go(made, (server, store, away))
    with pytest.raises(TryAgain, match=f"TorchServe at {away} does not answer"):
        go(made, (replace(server, inference=away, management=away), store, mlflow))


def _spoil(run: Path) -> None:
    """Let validation have found something else, as if the server now answered wrongly."""
    file = run / "validate" / "golden" / "golden.json"
    entries = json.loads(file.read_text())
    entries[0]["probability"] += 1e-4
    file.write_text(json.dumps(entries))
