"""A subject withdraws: the recordings leave the lake and what was derived of it, and later ones are refused."""

import json

import pytest
from collecting import KEY, agrees, rows, sound, take
from deliveries import rows_of, run

from collect import ledger
from collect.landing import settle
from collect.ledger import Declined
from collect.pseudonym import pseudonym
from collect.receive import label, recover, withdraw
from spira_train.outcome import NothingToDo
from spira_train.store import Lake, digest_bytes

DAY, NEXT = "2026-11-01", "2026-11-02"


def collected(lake: Lake) -> None:
    """Two days of five subjects; ana was recorded on both, and once more without consent for training."""
    for number in range(4):
        take(lake, number, DAY, subject=f"s{number}", label="patient" if number % 2 else "control")
        take(lake, number + 10, NEXT, subject=f"s{number}", label="patient" if number % 2 else "control")
    take(lake, 20, DAY)
    take(lake, 21, NEXT)
    take(lake, 22, NEXT, consent_training=False)
    for day in (DAY, NEXT):
        settle(lake, day)


def test_the_recordings_leave_and_the_next_extract_does_without_them(disk):
    collected(disk)
    for day in (DAY, NEXT):
        run(disk, day)
    disk.fs.makedirs(disk.path("features", DAY, "0123"))
    gone = [digest_bytes(sound(seed)) for seed in (20, 21, 22)]
    assert {row["source_digest"] for row in rows_of(disk, DAY)} & set(gone)
    found = withdraw(disk, KEY, " Ana ", "the-engineer")
    name = pseudonym(KEY, "ana")
    assert found.model_dump() == {"subject": name, "days": [DAY, NEXT], "recordings": 3}
    assert not [path for path in disk.files() if any(digest in path for digest in gone)]
    for area in ("audio", "features"):
        assert not disk.exists(area, DAY)
        assert not disk.exists(area, NEXT)
    note = json.loads(disk.read("collection", "withdrawn", f"{name}.json"))
    assert (note["subject"], note["days"], note["sources"]) == (name, [DAY, NEXT], sorted(gone))
    agrees(disk)
    for day in (DAY, NEXT):
        run(disk, day)
        assert len(rows_of(disk, day)) == 4
        assert not {row["source_digest"] for row in rows_of(disk, day)} & set(gone)


def test_what_was_made_anew_since_is_not_taken_away_by_the_next_start(disk):
    collected(disk)
    withdraw(disk, KEY, "ana", "x")
    run(disk, DAY)
    recover(disk)
    assert disk.exists("audio", DAY)


def test_nothing_of_theirs_is_taken_any_more(lake):
    kept = take(lake, 20, DAY, label=None)
    withdraw(lake, KEY, "ana", "x")
    for seed in (20, 23):
        with pytest.raises(Declined) as said:
            take(lake, seed, NEXT)
        assert said.value.reason == "withdrawn"
    with pytest.raises(Declined):
        label(lake, kept.id, "patient", "x", "")
    assert [one.state for one in ledger.recordings(lake, DAY).values()] == ["withdrawn"]
    assert not rows(lake, NEXT)


def test_a_day_that_is_empty_afterwards_is_no_partition(lake):
    take(lake, 20, DAY)
    settle(lake, DAY)
    assert lake.partitions() == [DAY]
    withdraw(lake, KEY, "ana", "x")
    assert lake.partitions() == []
    if lake.uri.startswith("/"):
        take(lake, 1, NEXT, subject="bea")
        settle(lake, NEXT)
        with pytest.raises(NothingToDo):
            run(lake, DAY)


def test_the_pseudonym_will_do_and_twice_is_once(lake):
    collected(lake)
    found = withdraw(lake, KEY, pseudonym(KEY, "ana"), "x")
    assert found.recordings == 3
    before = {path: lake.read(path) for path in lake.files()}
    assert withdraw(lake, KEY, "ana", "y") == found
    assert {path: lake.read(path) for path in lake.files()} == before


def test_somebody_unknown_is_on_record_and_said_to_be_unknown(lake):
    assert withdraw(lake, KEY, "zoe", "x").recordings == 0
    with pytest.raises(Declined):
        take(lake, subject="zoe")
