"""From a blessed archive to the champion, against a real MLflow and a real TorchServe."""

import json
import shutil
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from registering import Place, champion_of, check, die, go, loaded, spoil
from runs import archive_of, found_by_validate, free_ports, held_against, pack, packaged, wav

from serve import torchserve as ts
from spira_train import package, registry, signing
from spira_train.config import Config
from spira_train.outcome import BadInput, Refused, TryAgain
from spira_train.registry import Registry
from spira_train.store import digest_file

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]


def state(place: Place) -> tuple:
    """What a second run must not change: server, aliases, versions with their tags, archives in the store."""
    server, store, mlflow = place
    known = Registry(mlflow)
    versions = {number: (v.tags, v.last_updated_timestamp) for number, v in known.versions().items()}
    files = {f.name: (digest_file(f), f.stat().st_mtime_ns) for f in store.glob(f"{server.name}-*")}
    return ts.status(server), known.aliases(), versions, files


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


def test_a_challenger_is_held_beside_the_champion_until_it_is_promoted(place, made) -> None:
    first, second, third = (facts["version"] for _, _, facts in made[:3])
    with pytest.raises(BadInput, match="no other champion to be held beside"):
        go(made[0], place, hold=True)
    go(made[0], place)
    for each, version in ((made[1], second), (made[2], third)):
        summary = go(each, place, hold=True)["summary"]
        assert (summary["champion"], summary["verified"]) == (first, 3)
        assert champion_of(place) == (first, first, None)
        assert loaded(place) == {first, version}  # the challenger before it makes room
    assert check(made[2], place)["summary"]["message"] == f"{first} is the champion; nothing to verify"
    go(made[2], place)
    assert champion_of(place) == (third, third, first)
    assert "challenger" not in Registry(place[2]).aliases()


def test_a_blessing_from_before_the_champion_is_refused(place, tmp_path: Path) -> None:
    first, second, third = (packaged(tmp_path, seed) for seed in (1, 2, 3))
    go(first, place)
    with pytest.raises(Refused, match=f"held against no champion, but {first[2]['version']} is served now"):
        go(second, place, validated=False)
    held_against(third[0], first[2]["version"], first[2]["archive"])
    go(second, place)
    with pytest.raises(Refused, match=f"champion of then, {first[2]['version']}, but {second[2]['version']} is served"):
        go(third, place, validated=False)
    assert champion_of(place) == (second[2]["version"], second[2]["version"], first[2]["version"])
    # a finished run again needs no new comparison: it is the champion, or was
    go(second, place, validated=False)
    go(first, place, validated=False)
    assert champion_of(place)[0] == second[2]["version"]


def repacked(made, patch: pytest.MonkeyPatch, handler: Path):
    """The same run, packaged again after a change of the code in its archive."""
    handler.write_text(package.HANDLER.read_text() + "# newer\n")
    patch.setattr(package, "HANDLER", handler)
    pack(made[0], made[1])
    return *made[:2], json.loads((made[0] / "package" / "package.json").read_text())


def test_a_promoted_model_with_newer_code_needs_no_newer_verdict(place, tmp_path: Path, monkeypatch) -> None:
    first, second = packaged(tmp_path, 1), packaged(tmp_path, 2)
    go(first, place)
    go(second, place)
    newer = repacked(second, monkeypatch, tmp_path / "handler.py")
    assert newer[2]["version"] != second[2]["version"]
    go(newer, place, validated=False)
    assert champion_of(place) == (newer[2]["version"], newer[2]["version"], second[2]["version"])
    known = Registry(place[2])
    assert len({known.version(facts["archive"]).run_id for _, _, facts in (first, second, newer)}) == 3, "own evidence"
    # what was replaced stays replaced, newer code or not
    older = repacked(first, monkeypatch, tmp_path / "handler.py")
    summary = go(older, place, validated=False)["summary"]
    assert summary["message"] == f"{newer[2]['version']} is the champion now"
    assert champion_of(place)[0] == newer[2]["version"]


def test_two_registers_at_once_come_one_after_the_other(place, made) -> None:
    waiting = threading.Thread(target=go, args=(made[0], place))
    with ts.alone(place[1]):
        waiting.start()
        waiting.join(3)
        assert waiting.is_alive()
        assert Registry(place[2]).versions() == {}
    waiting.join(60)
    assert champion_of(place)[0] == made[0][2]["version"]


def archives(place, version: str) -> tuple[bool, bool]:
    """Whether its archive is in (the model store, MLflow)."""
    known = next(v for v in Registry(place[2]).versions().values() if v.tags["version"] == version)
    there = [f.path for f in Registry(place[2]).client.list_artifacts(known.run_id, "package")]
    stored = (place[1] / f"{place[0].name}-{version}.mar").is_file()
    return stored, any(path.endswith(f"{version}.mar") for path in there)


def test_old_archives_go_and_their_records_stay(place, made, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = [facts["version"] for _, _, facts in made]
    for each in made[:3]:
        go(each, place, keep=2)
    assert [archives(place, v) for v in versions[:3]] == [(False, False), (True, True), (True, True)]
    record = Registry(place[2]).version(made[0][2]["archive"])
    assert record.tags["retired"] == "true"
    files = {f.path for f in Registry(place[2]).client.list_artifacts(record.run_id, "package")}
    assert "package/model-card.md" in files
    before = state(place)
    go(made[2], place, keep=2)
    assert state(place) == before

    with monkeypatch.context() as patch:  # the fourth is refused: newer than champion and previous, yet it has no alias
        patch.setattr(ts, "TOLERANCE", -1.0)
        with pytest.raises(Refused):
            go(made[3], place, keep=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die(patch, ts, "discard")
        go(made[4], place, keep=2)
    assert champion_of(place) == (versions[4], versions[4], versions[2])
    go(made[4], place, keep=2)
    # the newest two and the previous one stay
    assert [archives(place, v) for v in versions] == [(False, False), (False, False), *[(True, True)] * 3]
    assert not any(
        "retired" in v.tags for v in Registry(place[2]).versions().values() if v.tags["version"] in versions[2:]
    )


def test_a_retired_version_that_is_wanted_again_comes_back_whole(place, made, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ts, "TOLERANCE", -1.0)
        with pytest.raises(Refused):
            go(made[0], place)
    for each in made[1:3]:
        go(each, place, keep=2)
    first, third = made[0][2]["version"], made[2][2]["version"]
    assert archives(place, first) == (False, False)
    go(made[0], place, keep=2)
    assert champion_of(place) == (first, first, third)
    assert archives(place, first) == (True, True)
    assert "retired" not in Registry(place[2]).version(made[0][2]["archive"]).tags


def test_a_version_remembers_why(place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIRA_IMAGE_DIGEST", "sha256:" + "ab" * 32)
    monkeypatch.setenv("SPIRA_REVISION", "1234567")
    run, config, facts = made = packaged(tmp_path, 1)
    (run / "config.json").write_text(config.canonical())
    interval = {"value": 0.9, "low": 0.8, "high": 0.95}
    for name, content in {
        "statistics": {"count": 3},
        "drift": {"drifted": []},
        "verdict": {"verdict": "blessed", "checks": [{"passed": True}] * 7},
    }.items():
        found_by_validate(run, f"{name}.json", content)
    (run / "validate" / "report.html").write_text("<p>report")
    go(made, place, approver="Ana Lima", approved_at="2026-11-06T08:30:00+00:00")

    known = Registry(place[2]).version(facts["archive"])
    tags = known.tags
    digests = {name: digest_file(run / "validate" / f"{name}.json") for name in ("statistics", "drift", "blessing")}
    expected = digests | {
        "partitions": "2026-11-05",
        "config": config.digest(),
        "image": "sha256:" + "ab" * 32,
        "revision": "1234567",
        "archive": facts["archive"],
        "infra": digest_file(run / "package" / "infra.json"),
        "report": digest_file(run / "validate" / "report.html"),
        "clean.auc": "{value:.3f} ({low:.3f} to {high:.3f})".format(**interval),
        "checks": "7 of 7",
        "approver": "Ana Lima",
        "approved_at": "2026-11-06T08:30:00+00:00",
        "promoted": "true",
    }
    assert {name: tags.get(name) for name in expected} == expected
    assert abs((datetime.now(UTC) - datetime.fromisoformat(tags["promoted_at"])).total_seconds()) < 60
    assert {"inputs", "code", "code_archive", "weights", "content", "train", "validate"} <= tags.keys()
    client = Registry(place[2]).client
    kept = {
        f.path for folder in (None, "validate", "package", "train") for f in client.list_artifacts(known.run_id, folder)
    }
    names = ("statistics", "drift", "metrics", "verdict", "blessing")
    assert {f"validate/{name}.json" for name in names} | {"validate/report.html"} <= kept
    assert {"config.json", "train/report.json", "package/infra.json", "package/package.json"} <= kept
    assert {"package/model-card.md", f"package/{archive_of(run).name}"} <= kept
    assert client.get_run(known.run_id).data.metrics["test.clean.auc"] == 0.9

    fetched = Registry(place[2]).download(known.version, tmp_path / "fetched")
    assert digest_file(fetched) == facts["archive"]

    go(made, place, approver="Rui Sá", approved_at="2026-11-07T08:30:00+00:00")  # it was there already
    assert Registry(place[2]).version(facts["archive"]).tags["approver"] == "Rui Sá"
    go(made, place)  # nobody was asked this time: who approved it stays on record
    assert Registry(place[2]).version(facts["archive"]).tags["approver"] == "Rui Sá"


def test_who_signed_it_travels_with_the_version(place, tmp_path: Path) -> None:
    keys = {name: tmp_path / name for name in ("old", "new")}
    signers = {name: signing.make_keys(folder) for name, folder in keys.items()}
    run, config, facts = made = packaged(tmp_path, 1, key=keys["old"] / "signing.key")
    with pytest.raises(Refused, match="signed with another key"):
        go(made, place, key=keys["new"] / "signing.pub")
    assert ts.status(place[0])["versions"] == {}
    assert Registry(place[2]).versions() == {}

    for name in ("old", "new"):  # with the new key everything is packaged again: the same bytes, another signature
        pack(run, config, keys[name] / "signing.key")
        go(made, place, key=keys[name] / "signing.pub")
        known = Registry(place[2]).version(facts["archive"])
        assert known.tags["signed_by"] == signers[name]
        client = Registry(place[2]).client
        fetched = Path(client.download_artifacts(known.run_id, "package", str(tmp_path / name)))
        assert signing.verify(fetched, keys[name] / "signing.pub") == signers[name], "what MLflow keeps can be verified"


def test_a_tag_is_never_too_long_for_mlflow(place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIRA_REVISION", "x" * 6000)
    made = packaged(tmp_path, 1)
    go(made, place)
    assert len(Registry(place[2]).version(made[2]["archive"]).tags["revision"]) == registry.TAG_LENGTH


@pytest.mark.parametrize(
    "half", [{"approved_at": "2026-11-06T08:30:00Z"}, {"approver": "Ana", "approved_at": "yesterday"}]
)
def test_half_an_approval_is_refused(place, tmp_path: Path, half: dict) -> None:
    with pytest.raises(BadInput, match="--approved-at"):
        go((tmp_path, Config(partition="2026-11-05"), {}), place, **half)


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
    spoil(second[0])
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
    spoil(first[0])
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
