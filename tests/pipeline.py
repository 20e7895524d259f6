"""Small runs of the real steps, as functions of this process."""

import os
import signal
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

from spira_train import extract, featurise
from spira_train.config import Config, preset_files, resolve
from spira_train.dataset import window_of
from spira_train.store import Lake, write_atomic

# Children with torch already imported, so that a kill hits the work and not the start of the interpreter.
SERVER = get_context("forkserver")
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


def kill_after(seconds: float, target, *arguments, begun=lambda: True) -> None:
    """Run `target` in a process of its own and SIGKILL it so many seconds after its work has `begun`."""
    process = SERVER.Process(target=target, args=arguments)
    process.start()
    while process.is_alive() and not begun():
        time.sleep(0.005)
    time.sleep(seconds)
    with suppress(ProcessLookupError):  # it was quicker
        os.kill(process.pid, signal.SIGKILL)
    process.join()
