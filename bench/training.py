"""Our training against SPIRA v1's own loop, at the same recipe: same network, batch of 5 recordings, 3 noises a file.

    python -m bench.training [--recordings 40] [--epochs 100]

v1's loop computes everything anew for each file of each epoch: it reads the recording and three noise tracks, mixes
them, builds an MFCC transform for each window and feeds the windows of five files. Ours computes features once (the
clean windows and `noise.variants` noisy ones) and trains from memory. Both figures come from the same run on the same
recordings; the whole is extrapolated from a few batches to `--epochs` epochs. A second table, that of `bench.devices`,
has our training on CPU and GPU, in float32 and in mixed precision.
"""

import argparse
import io
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import nn

from bench import devices, machine
from spira_train import config as configuration
from spira_train import extract, featurise, noise, simulate
from spira_train.dataset import load
from spira_train.features import FeatureExtractor, cut
from spira_train.model import build
from spira_train.rng import Random
from spira_train.store import Lake
from spira_train.train import batches, noam

BATCHES = 4


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--recordings", type=int, default=40)
    options.add_argument("--epochs", type=int, default=100)
    chosen = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="spira-bench-"))
    try:
        rows, note = measure(Lake(str(folder / "lake")), chosen.recordings, chosen.epochs)
    finally:
        shutil.rmtree(folder)
    machine.show(
        f"Training {chosen.epochs} epochs of SPIRA v1's recipe", ("", "v1's loop", "ours", "ratio"), rows, note
    )
    devices.show()


def measure(lake: Lake, recordings: int, epochs: int) -> tuple[list[tuple[str, str, str, str]], str]:
    """Rows (what, v1, ours, ratio) in milliseconds a window and seconds in all."""
    simulate.run(lake=lake.uri, settings=simulate.read_settings({"subjects": recordings, "days": 1}))
    (key,) = lake.partitions()
    overrides = {"partition": key, "data.min_subjects": 1}
    config = configuration.resolve(configuration.preset_files("spira_v1"), overrides)
    extract.run(lake=lake, config=config, partition=key)
    torch.set_num_threads(config.threads)
    started = time.perf_counter()
    featurise.run(lake=lake, config=config, partition=key)
    features = time.perf_counter() - started
    folder, _ = featurise.finished(lake, config, [key])[key]
    train = load(lake, [folder], config)["train"]
    windows = int(train.offsets[-1])
    theirs = v1_loop(lake, key, config)
    ours = our_loop(train, config)
    once = features * 1e3 / windows
    total_v1, total = theirs["all"] * windows * epochs / 1e3, features + ours * windows * epochs / 1e3
    compared = {
        "features, ms a window an epoch": (theirs["features"], once / epochs),
        "network, ms a window": (theirs["network"], ours),
        "together, ms a window": (theirs["all"], ours + once / epochs),
        f"{epochs} epochs, s": (total_v1, total),
    }
    rows = [(what, f"{v1:.2f}", f"{our:.2f}", f"{v1 / our:.1f}x") for what, (v1, our) in compared.items()]
    return rows, f"{len(train)} recordings, {windows} windows, {config.noise.variants} noisy variants of each"


def v1_loop(lake: Lake, partition: str, config: configuration.Config) -> dict[str, float]:
    """Milliseconds a window of v1's way: everything on the fly."""
    tracks = noise.catalogue(lake, salt=config.split.salt, test=config.noise.test)
    rows = featurise.manifest(lake, partition, ("train",))
    random, network = Random(1).stream("v1"), _network(config)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=config.train.weight_decay)
    settings = config.features.model_dump(exclude={"window_seconds", "step_seconds"})
    spent = {"features": 0.0, "network": 0.0}
    seen = 0
    for batch in range(BATCHES + 1):
        started = time.perf_counter()
        parts, labels = [], []
        for row in [rows[int(i)] for i in random.integers(len(rows), size=config.train.batch)]:
            speech = _read(lake.read("audio", partition, row["file"]))  # (T,)
            for _ in range(config.noise.inserts):
                track = _read(lake.read("noise", tracks[int(random.integers(len(tracks)))].file))
                start = int(random.integers(len(track) - len(speech)))
                crop = track[start : start + len(speech)]
                speech = speech + crop * random.uniform(0.0335, 0.1923) / np.abs(crop).max()
            for window in cut(torch.from_numpy(speech.astype(np.float32)), 64_000, 16_000):
                parts.append(FeatureExtractor(**settings)(window[None, None]))  # (1, 1, 401, 40)
                labels.append(row["label"])
        x, y = torch.cat(parts), torch.tensor(labels, dtype=torch.float32)  # (W, 1, 401, 40), (W,)
        middle = time.perf_counter()
        _step(network, optimiser, x, y)
        if batch:  # the first warms up
            spent["features"] += middle - started
            spent["network"] += time.perf_counter() - middle
            seen += len(y)
    each = {name: 1e3 * seconds / seen for name, seconds in spent.items()}
    return each | {"all": sum(each.values())}


def our_loop(train: Any, config: configuration.Config) -> float:
    """Milliseconds a window of our way: batches out of memory."""
    network = _network(config)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=config.train.weight_decay)
    data = torch.from_numpy(train.variants)
    seen, spent = 0, 0.0
    for number, (rows, variants, labels) in enumerate(batches(train, config, 1)):
        started = time.perf_counter()
        x = data[torch.from_numpy(variants), torch.from_numpy(rows)][:, None]  # (W, 1, 401, 40)
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * noam(number + 1, config.train.warmup_steps)
        _step(network, optimiser, x, torch.from_numpy(labels))
        if number:
            seen, spent = seen + len(labels), spent + time.perf_counter() - started
        if number == BATCHES:
            break
    return 1e3 * spent / seen


def _network(config: configuration.Config) -> nn.Module:
    torch.manual_seed(0)
    return build("spira_v1", frames=401, coefficients=40, dropout=config.model.dropout).train()


def _step(network: nn.Module, optimiser: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    loss = nn.functional.binary_cross_entropy_with_logits(network(x), y)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def _read(content: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(content), dtype="float32")[0]


if __name__ == "__main__":
    main()
