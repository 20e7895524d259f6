"""Training on each device of this machine, in float32 and in mixed precision: speed, answers, and how busy a GPU is.

    python -m bench.devices [--recordings 120]

Same lake, same seeds; the training is that of the step `train`, an epoch with its validation and its checkpoint. The
preset `fast` is trained to its end, for what its answers are worth; SPIRA v1's network for two epochs, for its speed
alone: so few teach it nothing. Without a GPU the CPU's rows are all there is. On a GPU torch computes float32's
convolutions in TF32, unless told otherwise.
"""

import argparse
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import torch

from bench import machine
from spira_train import config as configuration
from spira_train import extract, featurise, simulate
from spira_train.config import Config
from spira_train.dataset import Dataset, load
from spira_train.metrics import proportion
from spira_train.store import Lake
from spira_train.tracking import Tracker
from spira_train.train import answers, evaluate, fit

PRESETS: dict[str, dict[str, object]] = {"fast": {}, "spira_v1": {"train.epochs": 2}}
COLUMNS = ("preset, epochs", "device", "precision", "s an epoch", "validation loss", "accuracy (95 %)", "GPU busy")


class Clock(Tracker):
    """Looks at the clock after each epoch, and logs nowhere."""

    def __init__(self, config: Config):
        super().__init__(None, Path(), config)
        self.times = [time.perf_counter()]

    def log(self, epoch: int, values: object) -> None:
        self.times.append(time.perf_counter())

    def epoch(self) -> float:
        """Seconds of the median epoch; the first warms up."""
        return float(median(np.diff(self.times)[1:]))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--recordings", type=int, default=120)
    show(options.parse_args().recordings)


def show(recordings: int = 120) -> None:
    """Measure on every device there is, and print the table."""
    devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    rows: list[tuple[object, ...]] = []
    with tempfile.TemporaryDirectory(prefix="spira-bench-") as folder:
        lake = Lake(f"{folder}/lake")
        simulate.run(lake=lake.uri, settings=simulate.read_settings({"subjects": recordings, "days": 1}))
        for preset, overrides in PRESETS.items():
            config, train, validation = prepare(lake, preset, overrides)
            name = f"{preset}, {config.train.epochs}"
            for device, mixed in product(devices, (False, True)):
                rows.append((name, *measure(config, train, validation, device, mixed=mixed)))
    gpu = torch.cuda.get_device_name(0) if len(devices) > 1 else "none here: torch sees no GPU, so CPU alone"
    note = f"GPU: {gpu}; {len(train)} recordings in training, {len(validation)} in validation, clean and in noise"
    machine.show("Training, by device and precision", COLUMNS, rows, note)


def prepare(lake: Lake, preset: str, overrides: dict[str, object]) -> tuple[Config, Dataset, Dataset]:
    """Features of the lake's one partition for `preset`: (configuration, training split, validation split)."""
    (key,) = lake.partitions()
    named = {"partition": key, "data.min_subjects": 1} | overrides
    config = configuration.resolve(configuration.preset_files(preset), named)
    extract.run(lake=lake, config=config, partition=key)
    featurise.run(lake=lake, config=config, partition=key)
    folder, _ = featurise.finished(lake, config, [key])[key]
    splits = load(lake, [folder], config)
    return config, splits["train"], splits["validation"]


def measure(
    config: Config, train: Dataset, validation: Dataset, device: torch.device, *, mixed: bool
) -> tuple[str, str, str, str, str, str]:
    """One training: (device, precision, seconds an epoch, validation loss, accuracy, share of time a GPU worked)."""
    config = config.model_copy(update={"train": config.train.model_copy(update={"mixed_precision": mixed})})
    clock = Clock(config)
    with tempfile.TemporaryDirectory(prefix="spira-bench-") as folder, busy(device) as shares:
        state = fit(train, validation, config, device, Path(folder) / "checkpoint", clock)
    state.network.load_state_dict(state.best)
    held = torch.from_numpy(validation.variants[:2]).to(device)
    heard = answers(state.network, held, validation).cpu().numpy()  # (2, R)
    loss, _ = evaluate(state.network, held, validation)
    hits = ((heard > config.decision.threshold) == (validation.labels > 0.5)).ravel()
    right = proportion(hits, np.tile(np.arange(len(validation)), len(heard)))
    accuracy = f"{right['value']:.3f} ({right['low']:.3f} to {right['high']:.3f})"
    used = f"{np.mean(shares):.0f} %" if shares else "-"
    return device.type, "bfloat16" if mixed else "float32", f"{clock.epoch():.3f}", f"{loss:.4f}", accuracy, used


@contextmanager
def busy(device: torch.device) -> Iterator[list[float]]:
    """Percent of time in which the GPU worked, five times a second, known when the block ends; empty if nobody tells.

    As nvidia-smi says it: a share of time in which any of the GPU's units had work, not of what it could do.
    """
    shares: list[float] = []
    if device.type != "cuda" or not shutil.which("nvidia-smi"):
        yield shares
        return
    which = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    command = ["nvidia-smi", "-i", which, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    sampler = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield shares
    finally:
        sampler.terminate()
        said, _ = sampler.communicate()
        shares += [float(line) for line in said.splitlines() if line.strip().isdigit()]


if __name__ == "__main__":
    main()
