"""SIGKILL at random moments of simulate, validate and package: run again, and the bytes are those of a quiet run.

The kills of extract, features and train are in model/test_train.py, those of register in serve/test_register_kills.py.
"""

import random
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest
from pipeline import SERVER, kill_after

from spira_train import config as configuration
from spira_train import package, simulate, validate
from spira_train.store import Lake, digest_folder

SERVER.set_forkserver_preload(["spira_train.simulate", "spira_train.validate", "spira_train.package"])
pytestmark = pytest.mark.slow
LENIENT = "min_per_class: 2\nnoise: {inserts: 1}\nlimits: [{probe: clean, metric: accuracy, min: 0}]\n"


def simulated(lake: Path) -> None:
    settings = {"subjects": 6, "days": 2, "noise_tracks": 2, "seed": 5}
    simulate.run(lake=str(lake), settings=simulate.read_settings(settings))


def validated(lake: Path, run: Path) -> None:
    validate.run(run=run, lake=Lake(str(lake)), config=configuration.load(run), gate=run / "gate.yaml")


def packaged(run: Path) -> None:
    package.run(run=run, config=configuration.load(run))


def sandboxes() -> set[str]:
    """Process ids of sandbox model servers on this machine."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"spira-sandbox-" in (entry / "cmdline").read_bytes():
                found.add(entry.name)
    return found


def gone(look, before: set[str], seconds: float = 30.0) -> bool:
    """Whether all that was not there `before` goes away in time."""
    deadline = time.monotonic() + seconds
    while look() - before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def test_killed_simulation_ends_in_the_same_bytes(tmp_path):
    simulated(tmp_path / "whole")
    luck = random.Random(1)
    for _ in range(5):
        kill_after(luck.uniform(0.3, 3.0), simulated, tmp_path / "torn")
    simulated(tmp_path / "torn")
    assert digest_folder(tmp_path / "torn") == digest_folder(tmp_path / "whole")


@pytest.mark.torchserve
def test_killed_validation_and_packaging_end_in_the_same_bytes(trained, tmp_path):
    lake, run = trained
    whole, torn = tmp_path / "whole" / run.name, tmp_path / "torn" / run.name
    for copy in (whole, torn):
        shutil.copytree(run, copy)
        (copy / "gate.yaml").write_text(LENIENT)
    validated(lake, whole)
    packaged(whole)
    luck = random.Random(2)
    for _ in range(4):
        kill_after(luck.uniform(0.1, 2.0), validated, lake, torn)
        assert not (torn / "validate").exists() or (torn / "validate" / "report.json").exists()
    validated(lake, torn)
    assert digest_folder(torn / "validate") == digest_folder(whole / "validate")
    before = sandboxes()
    for _ in range(3):
        kill_after(luck.uniform(0.1, 4.0), packaged, torn)
        assert not (torn / "package").exists() or (torn / "package" / "report.json").exists()
        assert gone(sandboxes, before), "a killed packaging left its model server behind"
    packaged(torn)
    assert digest_folder(torn / "package") == digest_folder(whole / "package")
