"""Nothing half-written is ever visible; what a kill leaves behind is swept."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest

from spira_train.outcome import BadInput, TryAgain
from spira_train.store import Lake, local_lake, publish, read_report, scratch, write_atomic


def fill(folder, text):
    (folder / "sub").mkdir()
    (folder / "sub" / "data").write_text(text)
    (folder / "report.json").write_text(json.dumps({"fingerprint": text}))


def test_folder_appears_whole_and_is_replaced_whole(tmp_path):
    fs, destination = local_lake(tmp_path / "result")
    for text in ("one", "two"):
        with publish(fs, destination) as folder:
            fill(folder, text)
            seen = read_report(fs, destination)
            assert seen is None or seen == {"fingerprint": "one"}
        assert (tmp_path / "result" / "sub" / "data").read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["result"]


def test_failed_block_leaves_the_old_result_and_no_trace(tmp_path):
    fs, destination = local_lake(tmp_path / "result")
    with publish(fs, destination) as folder:
        fill(folder, "good")
    with pytest.raises(RuntimeError), publish(fs, destination) as folder:
        fill(folder, "bad")
        raise RuntimeError
    assert read_report(fs, destination) == {"fingerprint": "good"}
    assert [p.name for p in tmp_path.iterdir()] == ["result"]


def test_remains_of_a_killed_writer_are_swept_but_not_those_of_a_living_one(tmp_path):
    script = (
        "import sys, time\nfrom spira_train.store import local_lake, publish\n"
        "with publish(*local_lake(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('x')\n    print('writing', flush=True)\n    time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "result")], stdout=subprocess.PIPE)
    assert writer.stdout and writer.stdout.readline().strip() == b"writing"
    fs, destination = local_lake(tmp_path / "result")
    with publish(fs, destination) as folder:
        fill(folder, "mine")
    assert len(list(tmp_path.glob(".result.*"))) == 1  # the living writer keeps its own
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    time.sleep(0.1)
    with publish(fs, destination) as folder:
        fill(folder, "mine")
    assert [p.name for p in tmp_path.iterdir()] == ["result"]


def test_scratch_of_a_killed_holder_is_swept_but_not_that_of_a_living_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    script = (
        "import time\nfrom spira_train.store import scratch\n"
        "with scratch('spira-x-') as folder:\n"
        "    (folder / 'half').write_text('x')\n    print(folder, flush=True)\n    time.sleep(60)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert holder.stdout
    held = Path(holder.stdout.readline().strip())
    kept = [tmp_path / "spira-x-notes", tmp_path / "spira-y-12345678"]  # not ours, though they look alike
    for folder in kept:
        folder.mkdir()
    with scratch("spira-x-") as mine:
        assert mine.stat().st_mode & 0o077 == 0
        assert {held, mine, *kept} == set(tmp_path.iterdir())
    assert (held / "half").exists()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with scratch("spira-x-") as mine:
        assert {mine, *kept} == set(tmp_path.iterdir())
    assert set(kept) == set(tmp_path.iterdir())


def test_many_holders_of_scratch_at_once_keep_their_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def hold(_: int) -> None:
        for _ in range(50):
            with scratch("spira-x-") as folder:
                (folder / "file").write_text("mine")
                assert (folder / "file").exists()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hold, range(4)))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_one_message_and_keeps_the_old_result(tmp_path):
    fs, destination = local_lake(tmp_path / "result")
    with publish(fs, destination) as folder:
        fill(folder, "good")
    with pytest.raises(TryAgain, match="no space left on the disk"), publish(fs, destination) as folder:
        raise OSError(errno.ENOSPC, "No space left on device")
    assert read_report(fs, destination) == {"fingerprint": "good"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, as Linux has it")
def test_really_full_device_is_told(tmp_path):
    with (
        pytest.raises(TryAgain, match="no space left"),
        publish(*local_lake(tmp_path / "result")),
        Path("/dev/full").open("wb", buffering=0) as device,
    ):
        device.write(b"x")


def test_a_disk_that_takes_a_part_of_an_array_is_told_as_full(tmp_path):
    """As numpy tells it, without the reason; a limit on the size of files stands for the disk's end."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(TryAgain, match="no space left"), publish(*local_lake(tmp_path / "result")) as folder:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, most[1]))
        try:
            np.save(folder / "array.npy", np.zeros(100_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert list(tmp_path.iterdir()) == []


def test_object_store_gets_its_report_last(tmp_path):
    written = []

    class Recording(fsspec.get_filesystem_class("memory")):
        def pipe_file(self, path, value, **kwargs):
            written.append(path)
            return super().pipe_file(path, value, **kwargs)

    fs = Recording(skip_instance_cache=True)
    with publish(fs, "/bucket/result") as folder:
        fill(folder, "one")
    assert written[-1] == "/bucket/result/report.json"
    assert read_report(fs, "/bucket/result") == {"fingerprint": "one"}


def test_write_atomic_replaces(tmp_path):
    write_atomic(tmp_path / "deep" / "file", b"one")
    write_atomic(tmp_path / "deep" / "file", b"two")
    assert (tmp_path / "deep" / "file").read_bytes() == b"two"
    assert len(list((tmp_path / "deep").iterdir())) == 1


def test_lake_lists_partitions_only(tmp_path):
    for name in ("2026-11-02", "2026-11-01", ".2026-11-03.x.partial", "notes"):
        (tmp_path / "landing" / name).mkdir(parents=True)
    assert Lake(str(tmp_path)).partitions() == ["2026-11-01", "2026-11-02"]


def test_no_lake_and_empty_lake_are_told(tmp_path):
    with pytest.raises(BadInput, match=r"not found; create one with `spira-train simulate"):
        Lake(str(tmp_path / "none")).check()
    with pytest.raises(BadInput, match=r"empty; recordings are expected under landing/YYYY-MM-DD"):
        Lake(str(tmp_path)).check()


def test_many_writers_of_one_folder_end_with_one_whole_folder(tmp_path):
    fs, destination = local_lake(tmp_path / "result")

    def write(number: int) -> None:
        for _ in range(20):
            with publish(fs, destination) as folder:
                fill(folder, str(number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert read_report(fs, destination)["fingerprint"] == (tmp_path / "result" / "sub" / "data").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["result"]
