"""`spira-train collected`: days that are over are handed to training once, and once more when they change."""

import json

import pytest
from collecting import KEY, take
from deliveries import good_day, rows_of, run

from collect.days import of
from collect.landing import settle
from collect.receive import label, withdraw
from spira_train import collected
from spira_train.outcome import NothingToDo
from spira_train.store import Lake

DAY, NEXT, TODAY = "2026-11-01", "2026-11-02", "2026-11-03"


def close(lake: Lake, by: str = "", today: str = TODAY) -> dict:
    return collected.run(lake=lake, mlflow=None, by=by, today=today)


def bring(lake: Lake, day: str, first: int = 0) -> None:
    for seed in range(first, first + 4):
        take(lake, seed, day, subject=f"s{seed}", label="patient" if seed % 2 else "control")
    settle(lake, day)


def test_a_day_is_closed_when_it_is_over_and_not_again(lake):
    bring(lake, DAY)
    bring(lake, NEXT, 10)
    with pytest.raises(NothingToDo):
        close(lake, today=DAY)
    assert lake.landed() == []  # both are open still
    assert close(lake, today=NEXT)["days"] == [DAY]
    assert (of(lake, DAY).closed, of(lake, NEXT).closed) == (True, False)
    assert lake.landed() == [DAY]
    found = close(lake)
    assert (found["days"], found["newest"]) == ([NEXT], NEXT)
    with pytest.raises(NothingToDo):
        close(lake)


def test_whoever_closed_a_day_is_told_again_after_a_kill(lake):
    bring(lake, DAY)
    assert close(lake, by="run-1")["days"] == [DAY]
    assert close(lake, by="run-1")["days"] == [DAY]
    with pytest.raises(NothingToDo):
        close(lake, by="run-2")


def test_a_late_label_and_a_withdrawal_close_the_day_once_more(lake):
    bring(lake, DAY)
    kept = take(lake, 8, DAY, label=None, subject="late")
    close(lake)
    label(lake, kept.id, "patient", "x", "")
    settle(lake, DAY)
    assert close(lake)["days"] == [DAY]
    withdraw(lake, KEY, "late", "x")
    assert close(lake)["days"] == [DAY]
    for seed in range(4):
        withdraw(lake, KEY, f"s{seed}", "x")
    assert close(lake)["days"] == [DAY]  # emptied: whoever was trained on it should be followed by another
    with pytest.raises(NothingToDo):
        close(lake)


def test_a_day_on_which_nothing_landed_is_closed_in_silence(lake):
    take(lake, 0, DAY, label=None)
    settle(lake, DAY)
    with pytest.raises(NothingToDo):
        close(lake)
    assert of(lake, DAY).closed


def test_days_that_did_not_come_through_the_collection_are_not_its_own(lake):
    good_day().land(lake, DAY)
    with pytest.raises(NothingToDo):
        close(lake)
    assert lake.landed() == [DAY]


def test_an_extract_that_was_at_work_during_a_withdrawal_leaves_nothing(disk):
    bring(disk, DAY)
    bring(disk, DAY, 4)
    settle(disk, DAY)
    run(disk, DAY)
    stale = {name: disk.read("audio", DAY, name) for name in disk.files("audio", DAY)}
    withdraw(disk, KEY, "s1", "x")
    assert not disk.exists("audio", DAY)
    for name, content in stale.items():  # published after the withdrawal had removed it
        disk.fs.makedirs(disk.path("audio", DAY), exist_ok=True)
        disk.fs.pipe_file(disk.path("audio", DAY, name), content)
    assert close(disk)["forgotten"] == [DAY]
    assert not disk.exists("audio", DAY)
    run(disk, DAY)
    assert len(rows_of(disk, DAY)) == 7
    with pytest.raises(NothingToDo):
        close(disk)
    assert disk.exists("audio", DAY)


def test_the_command_says_which_days(tmp_path, command):
    lake = Lake(str(tmp_path / "lake"))
    bring(lake, DAY)
    code, said, _ = command("collected", "--lake", lake.uri, "--by", "run-1")
    assert (code, said["days"], said["newest"], said["marked"]) == (0, [DAY], DAY, {})
    code, said, _ = command("collected", "--lake", lake.uri)
    assert (code, said["outcome"]) == (99, "nothing_to_do")
    assert json.loads(lake.read("collection", DAY, "closed.json"))["by"] == "run-1"
