"""What stops a whole partition, and what it leaves behind: a clear message and nothing half done."""

import errno
from pathlib import Path
from typing import Any

import pytest
from deliveries import DAY, LAST, NEXT, Day, config, good_day, refused, run, voice, wav

from spira_train import extract, landing
from spira_train.outcome import BadInput, NothingToDo, TryAgain
from spira_train.store import Lake


def test_too_few_good_ones_refuse_the_partition_and_the_reasons_stay(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = good_day(count=3).add("x.wav", 1, b"no sound").add("y.wav", 1, wav(voice(9, 0.1)))
    day.land(lake, DAY)
    with pytest.raises(BadInput) as caught:
        run(lake)
    message = str(caught.value)
    assert "only 3 of 5 recordings are good (at least 4 and 50% are needed)" in message
    assert "1 too_short, 1 undecodable" in message
    assert f"quarantine/{DAY}/refused.csv" in message
    assert refused(lake) == [(5, "undecodable"), (6, "too_short")]
    assert not lake.exists("audio", DAY)
    monkeypatch.setattr(extract, "_listen", lambda *a: pytest.fail("decoded again though nothing has changed"))
    with pytest.raises(BadInput, match="only 3 of 5"):
        run(lake)
    monkeypatch.undo()
    assert run(lake, extract={"min_accepted": 3})["summary"]["accepted"] == 3
    with pytest.raises(BadInput, match="75% are needed"):
        run(lake, extract={"min_accepted": 3, "min_accepted_fraction": 0.75})


def test_users_mistakes_are_named(lake: Lake) -> None:
    with pytest.raises(BadInput, match="not found"):
        run(lake)
    lake.fs.makedirs(lake.path("landing"), exist_ok=True)
    lake.fs.pipe_file(lake.path("landing", "readme.txt"), b"")
    with pytest.raises(BadInput, match="empty; recordings are expected"):
        run(lake)
    good_day().land(lake, DAY)
    with pytest.raises(NothingToDo, match="nothing was delivered"):
        run(lake, NEXT)
    with pytest.raises(BadInput, match="YYYY-MM-DD"):
        extract.run(lake=lake, config=config(), partition="yesterday")
    Day("file_path,sexo", ["a.wav,M"], {"a.wav": b""}).land(lake, NEXT)
    with pytest.raises(BadInput, match="class is missing"):
        run(lake, NEXT)
    assert lake.partitions("audio") == lake.partitions("quarantine") == []


def test_an_empty_delivery_is_nothing_to_do(disk: Lake) -> None:
    good_day().land(disk, DAY)
    disk.fs.makedirs(disk.path("landing", NEXT))
    with pytest.raises(NothingToDo, match="empty"):
        run(disk, NEXT)
    Day().land(disk, LAST)
    with pytest.raises(NothingToDo, match="lists no recording"):
        run(disk, LAST)


@pytest.mark.parametrize("change", ["grows", "changes", "arrives", "goes"])
def test_a_delivery_that_is_being_written_is_tried_again(
    disk: Lake, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    good_day().land(disk, DAY)
    genuine = landing.landing_digest

    def meanwhile(lake: Lake, key: str) -> Any:
        seen = genuine(lake, key)
        file = Path(lake.path("landing", key, "r2.wav"))
        if change == "grows":
            file.write_bytes(file.read_bytes() + b"more")
        elif change == "changes":
            file.write_bytes(file.read_bytes()[::-1])
        elif change == "arrives":
            file.with_name("new.wav").write_bytes(b"")
        else:
            file.unlink()
        return seen

    monkeypatch.setattr(landing, "landing_digest", meanwhile)
    with pytest.raises(TryAgain, match=f"landing/{DAY}: is being written; try again"):
        run(disk)
    assert not disk.exists("audio", DAY)
    assert not disk.exists("quarantine", DAY)


def test_a_full_disk_leaves_nothing_half_done(disk: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    good_day().land(disk, DAY)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(extract.pq, "write_table", full)
    with pytest.raises(TryAgain, match="no space left on the disk"):
        run(disk)
    assert not disk.exists("audio", DAY)
    assert list(Path(disk.path("audio")).iterdir()) == []
    monkeypatch.undo()
    assert run(disk)["summary"]["accepted"] == 4
