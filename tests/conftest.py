"""Shared by all tests: a small simulated lake, made once, and a way to run the real command line."""

import io
import json
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import fsspec
import pytest
from no_skips import pytest_runtest_makereport  # noqa: F401 - a hook
from pipeline import prepare, start_run

from spira_train import simulate, train
from spira_train.cli import main
from spira_train.store import Lake


def spira_train(*arguments: object) -> tuple[int, dict, str]:
    """Run the command line in this process: (exit code, last line as JSON, everything on stderr)."""
    out, errors, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["spira-train", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(errors), pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = before
    lines = out.getvalue().strip().splitlines()
    return int(ended.value.code or 0), json.loads(lines[-1]) if lines else {}, errors.getvalue()


@pytest.fixture(scope="session")
def command():
    """The command line as a function."""
    return spira_train


@pytest.fixture(params=["file", "memory"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    """The same behaviour on a disk and on an object store."""
    if request.param == "file":
        return Lake(str(tmp_path / "lake"))
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]
    return Lake("memory://lake")


@pytest.fixture
def disk(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


@pytest.fixture(scope="session")
def small_lake(tmp_path_factory) -> Path:
    """Three partitions of twelve subjects; treat as read-only, or copy it."""
    lake = tmp_path_factory.mktemp("small") / "lake"
    settings = {"subjects": 12, "days": 3, "start": "2026-11-01", "damaged": 0, "noise_tracks": 4}
    simulate.run(lake=str(lake), settings=simulate.read_settings(settings))
    return lake


@pytest.fixture(scope="session")
def trained(small_lake, tmp_path_factory) -> tuple[Path, Path]:
    """(lake, run) with extract, features and train done; treat as read-only, or copy it."""
    lake = tmp_path_factory.mktemp("trained") / "lake"
    shutil.copytree(small_lake, lake)
    run, config = start_run(lake, lake.parent / "runs")
    prepare(lake, config)
    train.run(run=run, lake=Lake(str(lake)), config=config)
    return lake, run
