"""Shared by all tests: a small simulated lake, made once, and a way to run the real command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Markers whose tests may not be skipped, from the environment: CI must not go green on real parts that were not tried.
NO_SKIPS = set(os.environ.get("SPIRA_NO_SKIPS", "").split())
ROOT = Path(__file__).resolve().parent.parent
SPIRA_TRAIN = Path(sys.executable).with_name("spira-train")


def spira_train(*arguments: object, **environment: str) -> tuple[int, dict, str]:
    """Run the real command: (exit code, last line as JSON, everything on stderr)."""
    done = subprocess.run(
        [SPIRA_TRAIN, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("SPIRA_")} | environment,
    )
    lines = done.stdout.strip().splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}, done.stderr


@pytest.fixture(scope="session")
def command():
    """The command line as a function."""
    return spira_train


@pytest.fixture(scope="session")
def small_lake(tmp_path_factory) -> Path:
    """Three partitions of twelve subjects, extracted and with features; treat as read-only, or copy it."""
    lake = tmp_path_factory.mktemp("small") / "lake"
    code, _, errors = spira_train(
        "simulate", "--lake", lake, "--subjects", 12, "--days", 3, "--start", "2026-11-01", "--damaged", 0
    )
    assert code == 0, errors
    return lake


SMALL = {
    "data.min_subjects": 1, "noise.variants": 1, "noise.inserts": 1, "train.epochs": 4, "validation.bootstrap": 100,
}  # fmt: skip


def start_run(lake: Path, runs: Path, partition: str = "2026-11-03", **overrides: object) -> Path:
    """`setup` with the fast preset and small numbers; returns the run folder."""
    settings = [f"--set={k}={v}" for k, v in (SMALL | {k.replace("__", "."): v for k, v in overrides.items()}).items()]
    code, line, errors = spira_train(
        "setup", "--lake", lake, "--runs", runs, "--partition", partition, "--preset", "fast", *settings
    )
    assert code == 0, errors
    return Path(line["run"])


@pytest.fixture(scope="session")
def trained(small_lake, tmp_path_factory) -> tuple[Path, Path]:
    """(lake, run) with extract, features and train done; treat as read-only, or copy it."""
    lake = tmp_path_factory.mktemp("trained") / "lake"
    shutil.copytree(small_lake, lake)
    run = start_run(lake, lake.parent / "runs")
    for step in ("extract", "features", "train"):
        code, _, errors = spira_train(step, "--run", run, "--lake", lake)
        assert code == 0, errors
    return lake, run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Turn a skip into a failure where `SPIRA_NO_SKIPS` names one of the test's markers."""
    report = yield
    if report.skipped and NO_SKIPS & {mark.name for mark in item.iter_markers()}:
        report.outcome = "failed"
        report.longrepr = f"skipped, but SPIRA_NO_SKIPS forbids that: {report.longrepr}"
    return report
