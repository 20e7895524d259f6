"""What is served is what the registry says, whatever was killed or forgotten; a rollback is one command."""

import shutil
import threading
import time
from pathlib import Path

import pytest
from registering import Made, Place, champion_of, die, go, loaded
from runs import archive_of, packaged, wav
from servers import running

from serve import torchserve as ts
from spira_train import reconcile, registry, rollback
from spira_train.outcome import BadInput, Refused, TryAgain
from spira_train.registry import Registry
from spira_train.store import digest_file

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]


def mend(place: Place) -> dict:
    server, store, mlflow = place
    return reconcile.run(mlflow=mlflow, server=server, models=store)


def back(place: Place, to: str = "") -> dict:
    server, store, mlflow = place
    return rollback.run(mlflow=mlflow, server=server, models=store, to=to)


@pytest.fixture
def two(place: Place, made: list[Made]) -> tuple[str, str]:
    """The versions of the previous and the present champion."""
    for each in made[:2]:
        go(each, place)
    return made[0][2]["version"], made[1][2]["version"]


def test_where_all_agree_nothing_is_done(place: Place, two: tuple[str, str]) -> None:
    before = ts.status(place[0]), Registry(place[2]).versions()["2"].last_updated_timestamp
    assert mend(place) == {"champion": two[1], "previous": two[0], "mended": []}
    assert (ts.status(place[0]), Registry(place[2]).versions()["2"].last_updated_timestamp) == before


def test_where_nothing_was_ever_registered_nothing_is_served(place: Place) -> None:
    assert mend(place) == {"champion": None, "previous": None, "mended": []}


def test_without_a_champion_nothing_that_was_loaded_by_hand_is_served(place: Place, made: list[Made]) -> None:
    for run, _, facts in made[:2]:
        ts.register(place[0], archive_of(run), facts["version"], place[1])
    assert len(mend(place)["mended"]) == 2
    assert loaded(place) == set()


# The second register is killed here; was its version the champion by then?
KILLS = {
    "loaded": (ts, "register", {}, False),
    "announced": (reconcile, "write_atomic", {}, False),
    "default": (ts, "promote", {}, True),
    "champion named": (Registry, "point", {"at": "champion"}, True),
}


@pytest.mark.parametrize("where", KILLS)
def test_a_promotion_that_was_killed_is_finished_or_undone(place, made, monkeypatch, where: str) -> None:
    owner, name, options, was_served = KILLS[where]
    go(made[0], place)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die(patch, owner, name, **options)
        go(made[1], place)
    mend(place)
    first, second = (facts["version"] for _, _, facts in made[:2])
    assert champion_of(place) == ((second, second, first) if was_served else (first, first, None))
    assert mend(place)["mended"] == []


@pytest.mark.parametrize(
    ("owner", "name", "options", "was_changed"),
    [
        pytest.param(reconcile, "write_atomic", {}, False, id="announced"),
        pytest.param(ts, "rollback", {}, True, id="default"),
        pytest.param(Registry, "point", {"at": "champion"}, True, id="champion named"),
    ],
)
def test_a_rollback_that_was_killed_is_finished_or_undone(
    place, two, monkeypatch, owner: object, name: str, options: dict, was_changed: bool
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die(patch, owner, name, **options)
        back(place)
    mend(place)
    first, second = two
    assert champion_of(place) == ((first, first, None) if was_changed else (second, second, first))
    assert mend(place)["mended"] == []


def test_a_server_that_came_back_with_an_old_memory_gets_the_champion(place: Place, two: tuple[str, str]) -> None:
    first, second = two
    ts.promote(place[0], first)  # as a snapshot from before the promotion does
    assert mend(place)["mended"] == [f"{second} is the champion and is the default version again"]
    assert champion_of(place) == (second, second, first)


def test_what_somebody_loaded_by_hand_is_not_served(place: Place, two: tuple[str, str], tmp_path: Path) -> None:
    run, _, facts = packaged(tmp_path, 9)
    ts.register(place[0], archive_of(run), facts["version"], place[1])
    ts.promote(place[0], facts["version"])
    mended = mend(place)["mended"]
    assert mended[0] == f"{two[1]} is the champion and is the default version again"
    assert mended[1].startswith(f"{facts['version']} is unloaded")
    assert champion_of(place) == (two[1], two[1], two[0])
    assert loaded(place) == set(two)


def test_whatever_happens_to_the_server_it_serves_the_champion_again(place, made, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    own = running(tmp_path / "own")
    own.start()
    there = (own.server, own.store, place[2])
    first, second = (facts["version"] for _, _, facts in made[:2])
    try:
        for each in made[:2]:
            go(each, there)
        own.stop(9)  # killed right after the promotion
        with pytest.raises(TryAgain, match="does not answer"):
            mend(there)
        own.start()
        mend(there)
        assert champion_of(there) == (second, second, first)
        own.stop(9)  # a new machine: neither its memory nor its model store is left
        shutil.rmtree(own.home)
        shutil.rmtree(own.store)
        own.start()
        assert mend(there)["mended"] == [f"{version} is registered and READY again" for version in (second, first)]
        assert champion_of(there) == (second, second, first)
        assert ts.predict(own.server, wav()).status_code == 200
    finally:
        own.stop()


def test_a_damaged_archive_is_fetched_anew_and_a_lost_one_is_named(place, two, monkeypatch) -> None:
    server, store, mlflow = place
    first, second = two
    for version in (first, second):  # the default one has to go last
        ts.unregister(server, version)
    assert ts.status(server)["default"] is None
    stored = store / f"{server.name}-{second}.mar"
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    assert mend(place)["champion"] == second
    assert digest_file(stored) == Registry(mlflow).versions()["2"].tags["archive"]
    for version in (first, second):
        ts.unregister(server, version)
    stored.unlink()
    monkeypatch.setattr(Registry, "download", lambda *_: (_ for _ in ()).throw(TryAgain("gone")))
    with pytest.raises(Refused, match=rf"{second}: its archive is neither in .* nor in MLflow \(gone\)"):
        mend(place)


def test_roll_back_and_forth(place: Place, made: list[Made], two: tuple[str, str]) -> None:
    first, second = two
    assert back(place) == {"champion": first, "was": second}
    assert champion_of(place) == (first, first, None)
    with pytest.raises(BadInput, match="no previous version to roll back to"):
        back(place)
    with pytest.raises(BadInput, match=f"{first} is the default version already"):
        back(place, first)
    assert mend(place)["mended"] == [f"{second} is unloaded; its archive stays in the model store"]
    assert back(place, second) == {"champion": second, "was": first}  # unloaded by now
    assert champion_of(place) == (second, second, None)
    assert back(place, first)["champion"] == first
    go(made[1], place, validated=False)  # what was taken away comes back by its own run
    assert champion_of(place) == (second, second, first)
    with pytest.raises(BadInput, match=f"2026-01-01-00000000: never was the champion.*{first}, {second}"):
        back(place, "2026-01-01-00000000")


def test_a_rollback_does_not_wait_for_mlflow_to_be_told(place, two, monkeypatch) -> None:
    def away(*_: object) -> None:
        raise TryAgain("MLflow went away")

    with monkeypatch.context() as patch, pytest.raises(TryAgain, match="went away"):
        patch.setattr(rollback, "rollback", away)
        back(place)
    first, second = two
    assert champion_of(place) == (first, second, first)
    assert mend(place)["mended"] == [
        f"a rollback to {first} was cut off: it is the champion again",
        f"{second} is unloaded; its archive stays in the model store",
    ]
    assert champion_of(place) == (first, first, None)


def test_the_fast_way_to_an_alias_says_what_the_client_says(place: Place, two: tuple[str, str]) -> None:
    found = registry.named(place[2], "previous")
    assert found == dict(Registry(place[2]).versions()["1"].tags)
    assert registry.named(place[2], "challenger") is None
    ours = sorted(registry.remembered(place[2]), key=lambda tags: tags["version"])
    assert ours == sorted((dict(v.tags) for v in Registry(place[2]).versions().values()), key=lambda t: t["version"])
    with pytest.raises(TryAgain, match="does not answer"):
        registry.named("http://127.0.0.1:9", "previous")


def test_no_request_fails_while_versions_change_places(place: Place, two: tuple[str, str]) -> None:
    """bench/serve does the same with 10,000 requests."""
    content, seen, stop = wav(1), [], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answer = ts.predict(place[0], content)
            seen.append((answer.status_code, answer.json()["model"]["version"]))

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    for version in (two[0], two[1], two[0]):
        back(place, version)
        time.sleep(1)
        mend(place)
    stop.set()
    for caller in callers:
        caller.join()
    assert {status for status, _ in seen} == {200}
    assert {version for _, version in seen} == set(two)
    assert len(seen) > 100
