"""Shared by all tests: a small simulated lake, made once, and a way to run the real command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spira_train import extract, featurise, simulate, train
from spira_train.config import Config, preset_files, resolve
from spira_train.dataset import window_of
from spira_train.store import Lake, write_atomic

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
    """Three partitions of twelve subjects; treat as read-only, or copy it."""
    lake = tmp_path_factory.mktemp("small") / "lake"
    settings = {"subjects": 12, "days": 3, "start": "2026-11-01", "damaged": 0, "noise_tracks": 4}
    simulate.run(lake=str(lake), settings=simulate.read_settings(settings))
    return lake


SMALL = {
    "data.min_subjects": 1, "noise.variants": 1, "train.epochs": 4, "validation.bootstrap": 100, "threads": 1,
}  # fmt: skip


def start_run(lake: Path, runs: Path, partition: str = "2026-11-03", **overrides: object) -> tuple[Path, Config]:
    """(run folder, configuration) as `setup` leaves them: the fast preset with small numbers."""
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    config = resolve(preset_files("fast"), SMALL | named | {"partition": partition})
    run = runs / f"{partition}-{config.digest()[:8]}"
    write_atomic(run / "config.json", config.canonical().encode())
    return run, config


def prepare(lake: Path, config: Config) -> None:
    """Extract and features of every partition that the run trains on."""
    place = Lake(str(lake))
    for step in (extract, featurise):
        for key in window_of(config, place.partitions()):
            step.run(lake=place, config=config, partition=key)


@pytest.fixture(scope="session")
def trained(small_lake, tmp_path_factory) -> tuple[Path, Path]:
    """(lake, run) with extract, features and train done; treat as read-only, or copy it."""
    lake = tmp_path_factory.mktemp("trained") / "lake"
    shutil.copytree(small_lake, lake)
    run, config = start_run(lake, lake.parent / "runs")
    prepare(lake, config)
    train.run(run=run, lake=Lake(str(lake)), config=config)
    return lake, run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Turn a skip into a failure where `SPIRA_NO_SKIPS` names one of the test's markers."""
    report = yield
    if report.skipped and NO_SKIPS & {mark.name for mark in item.iter_markers()}:
        report.outcome = "failed"
        report.longrepr = f"skipped, but SPIRA_NO_SKIPS forbids that: {report.longrepr}"
    return report
