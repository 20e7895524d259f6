"""A kill at every point at which something is written: what was answered for is there, and what was cut off heals."""

import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from collecting import KEY, agrees, rows, service, sound, take

from collect import ledger, place
from collect.landing import settle
from collect.receive import label, recover, withdraw
from spira_train.store import Lake, digest_bytes

DAY = "2026-11-01"
WRITES = ("put", "move", "remove")


def before(lake: Lake) -> None:
    """A day with something of everything, settled."""
    for number in range(3):
        take(lake, number, DAY, subject=f"s{number}", label="control")
    take(lake, 10, DAY)
    take(lake, 11, DAY, label=None)
    take(lake, 12, DAY, consent_training=False)
    settle(lake, DAY)
    for area in ("audio", "features"):
        lake.fs.makedirs(lake.path(area, DAY), exist_ok=True)
        lake.fs.pipe_file(lake.path(area, DAY, "derived"), b"of ana")


def receives(lake: Lake) -> None:
    take(lake, 30, DAY, subject="new")
    settle(lake, DAY)


def labels(lake: Lake) -> None:
    label(lake, digest_bytes(sound(11))[:32], "patient", "x", "")
    settle(lake, DAY)


def withdraws(lake: Lake) -> None:
    withdraw(lake, KEY, "ana", "x")


def dying(monkeypatch: pytest.MonkeyPatch, at: int, after: bool) -> Callable[[], int]:
    """Let the write number `at` be the last thing that happens, or not happen any more; tells how many there were."""
    count = 0

    def wrap(real: Callable) -> Callable:
        def write(*args, **options):
            nonlocal count
            count += 1
            if count == at and not after:
                raise KeyboardInterrupt
            real(*args, **options)
            if count == at:
                raise KeyboardInterrupt

        return write

    for name in WRITES:
        real = getattr(place, name)
        for module in ("collect.ledger", "collect.landing", "collect.receive"):
            monkeypatch.setattr(f"{module}.{name}", wrap(real), raising=False)
    return lambda: count


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("does", [receives, labels, withdraws])
def test_a_kill_at_every_write(tmp_path, monkeypatch, does, after):
    whole = Lake(str(tmp_path / "whole"))
    before(whole)
    with monkeypatch.context() as patch:
        writes = dying(patch, 0, after)
        does(whole)
        total = writes()
    assert total >= 3
    for at in range(1, total + 1):
        lake = Lake(str(tmp_path / f"killed-{at}"))
        before(lake)
        with monkeypatch.context() as patch:
            dying(patch, at, after)
            with pytest.raises(KeyboardInterrupt):
                does(lake)
        recover(lake)  # as the service does when it starts: whatever was begun is finished or has not happened
        agrees(lake)
        if does is withdraws and at > 1:
            assert not lake.exists("audio", DAY)
            assert not lake.exists("features", DAY)
            assert "withdrawn" in {one.state for one in ledger.recordings(lake, DAY).values()}
        does(lake)  # whoever had no answer asks again
        agrees(lake)
        assert rows(lake, DAY) == rows(whole, DAY)
        assert kinds(lake) == kinds(whole)


@pytest.mark.parametrize("at", [1, 2, 4], ids=["recording", "event", "metadata"])
def test_a_kill_in_the_midst_of_a_file_leaves_no_part_of_it(tmp_path, monkeypatch, at):
    lake = Lake(str(tmp_path / "lake"))
    before(lake)
    real, count = Path.replace, 0

    def cut(self, target):
        nonlocal count
        count += 1
        if count == at:
            raise SystemExit  # the process is gone: not even `finally` may tidy up
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", cut)
        patch.setattr("pathlib.Path.unlink", lambda self, missing_ok=False: None)
        with pytest.raises(SystemExit):
            receives(lake)
    assert [path for path in lake.fs.find(lake.path()) if path.endswith(".partial")]
    recover(lake)
    agrees(lake)
    assert len(ledger.recordings(lake, DAY)) == (6 if at < 3 else 7)


def test_a_kill_in_the_midst_of_the_note_of_a_withdrawal(tmp_path, monkeypatch):
    lake = Lake(str(tmp_path / "lake"))
    before(lake)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", lambda self, target: sys.exit())
        patch.setattr("pathlib.Path.unlink", lambda self, missing_ok=False: None)
        with pytest.raises(SystemExit):
            withdraws(lake)
    assert not ledger.withdrawn(lake)
    recover(lake)
    agrees(lake)


@pytest.mark.slow
def test_the_service_is_killed_under_load_and_loses_nothing_that_it_answered_for(tmp_path):
    running, luck = service(tmp_path), random.Random(4)
    answered: dict[int, dict] = {}
    labelled: set[int] = set()
    gone: set[int] = set()
    stop = threading.Event()

    def client(first: int) -> None:
        number = first
        while not stop.is_set():
            late = number % 3 == 0
            try:
                said = running.send(sound(number), subject=f"s{number}", label=None if late else "control")
                if said.status_code == 409:  # it was killed after the withdrawal, and before its answer
                    assert said.json()["error"] == "withdrawn"
                    gone.add(number)
                    number += 8
                    continue
                assert said.status_code in (200, 201), said.text
                answered[number] = said.json()
                if late:
                    path = f"/v1/recordings/{answered[number]['id']}/label"
                    assert running.ask("POST", path, json={"label": "patient"}).status_code == 200
                    labelled.add(number)
                if number % 5 == 0:
                    left = running.ask("POST", "/v1/subjects/withdraw", "engineer", json={"subject": f"s{number}"})
                    assert left.json()["recordings"] == 1
                    gone.add(number)
            except requests.ConnectionError:
                time.sleep(0.05)  # killed: the same is sent again
                continue
            number += 8

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, first) for first in range(8)]
        for _ in range(3):
            time.sleep(0.3 + luck.random())
            running.kill()
            running.start()
        time.sleep(0.5)
        stop.set()
        for each in clients:
            each.result(60)
    running.kill()
    running.start()
    assert running.stop() == 0
    lake = running.lake
    agrees(lake)
    found = {one.id: one for day in ledger.days(lake) for one in ledger.recordings(lake, day).values()}
    assert len(answered) > 20, running.log()[-2000:]
    for number, receipt in answered.items():
        one = found[receipt["id"]]
        assert one.digest == digest_bytes(sound(number))
        if number in gone:
            assert one.state == "withdrawn"
        elif number in labelled:
            assert one.label == "patient"


def kinds(lake: Lake) -> list[str]:
    """What happened, without when."""
    return sorted(name.partition("-")[2] for name in ledger.listing(lake, DAY).names)
