"""Registration and rollback that are killed anywhere are healed by the next run."""

from pathlib import Path

import pytest
from registering import champion_of, check, die, go, loaded, spoil
from runs import packaged

from serve import torchserve as ts
from spira_train import register, registry
from spira_train.outcome import Refused
from spira_train.registry import Registry

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]


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


# The second register is killed here; a third run comes next. Was the second served by then?
KILLS = {
    "loaded": (ts, "register", {}, False),
    "challenger named": (Registry, "point", {"at": "challenger"}, False),
    "default": (ts, "promote", {}, True),
    "previous named": (Registry, "point", {"at": "previous"}, True),
    "champion named": (Registry, "point", {"at": "champion"}, True),
    "half of its tags": (Registry, "tag", {"at": "promoted_at"}, True),
    "receipt missing": (register, "_report", {"after": False}, True),
}


@pytest.mark.parametrize("where", KILLS)
def test_after_a_kill_another_run_finds_order(place, made, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    first, second, third = (facts["version"] for _, _, facts in made[:3])
    owner, name, options, was_served = KILLS[where]
    go(made[0], place)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die(patch, owner, name, **options)
        go(made[1], place)
    assert ts.status(place[0])["default"] == (second if was_served else first)
    go(made[2], place)
    before = second if was_served else first
    assert champion_of(place) == (third, third, before)
    assert loaded(place) == {third, before}
    assert "challenger" not in Registry(place[2]).aliases()
    promoted = {v.tags["version"] for v in Registry(place[2]).versions().values() if v.tags.get("promoted") == "true"}
    assert promoted == {first, third} | ({second} if was_served else set())
    check(made[2], place)


def test_after_a_kill_an_old_run_that_is_cleared_does_not_push_the_new_one_aside(place, made, monkeypatch) -> None:
    for each in made[:2]:
        go(each, place)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die(patch, ts, "promote")
        go(made[2], place)
    second, third = (facts["version"] for _, _, facts in made[1:3])
    assert go(made[0], place)["summary"]["champion"] == third
    assert champion_of(place) == (third, third, second)


def test_a_first_register_that_was_killed_before_its_verification_is_never_promoted(place, made, monkeypatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die(patch, ts, "register")  # TorchServe makes its very first version the default by itself
        go(made[0], place)
    go(made[1], place)
    second = made[1][2]["version"]
    assert champion_of(place) == (second, second, None)
    assert loaded(place) == {second}


def test_a_promotion_cut_off_and_then_found_wrong_gives_the_champion_its_place_back(place, made, monkeypatch) -> None:
    go(made[0], place)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die(patch, ts, "promote")
        go(made[1], place)
    monkeypatch.setattr(ts, "TOLERANCE", -1.0)
    with pytest.raises(Refused, match="was not promoted; what was served before goes on"):
        go(made[1], place)
    first = made[0][2]["version"]
    assert champion_of(place) == (first, first, None)
    assert loaded(place) == {first}
    assert "challenger" not in Registry(place[2]).aliases()


@pytest.mark.parametrize("then", ["verify again", "another run"])
@pytest.mark.parametrize(
    ("owner", "name", "options"),
    [
        pytest.param(ts, "rollback", {}, id="default"),
        pytest.param(ts, "unregister", {}, id="unloaded"),
        pytest.param(Registry, "tag", {"at": "promoted"}, id="tagged"),
        pytest.param(Registry, "point", {"at": "champion"}, id="champion named"),
    ],
)
def test_a_rollback_that_was_killed_is_finished(place, made, monkeypatch, owner, name, options, then: str) -> None:
    for each in made[:2]:
        go(each, place)
    spoil(made[1][0])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die(patch, owner, name, **options)
        check(made[1], place)
    first, third = made[0][2]["version"], made[2][2]["version"]
    if then == "verify again":
        with pytest.raises(Refused, match=f"was rolled back before: {first} is served again"):
            check(made[1], place)
        assert champion_of(place) == (first, first, None)
        assert loaded(place) == {first}
    else:
        go(made[2], place)
        assert champion_of(place) == (third, third, first)
        assert loaded(place) == {third, first}
    assert Registry(place[2]).version(made[1][2]["archive"]).tags["promoted"] == "false"
