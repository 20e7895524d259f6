"""SPIRA's finding, again, on a simulated lake: without ward noise in training, a model learns the ward.

    python -m bench.ward_study --out var/ward-study [--only-report] [--pictures docs/pictures]
    python -m bench.ward_study --out var/ward-lakes --lakes [--same-devices] [--ablation] [...]

Every patient of this lake lies in a ward, every control is at home, as in SPIRA's first phase. v1's network is trained
as v1 was, with noise counted by label, and the package's default recipe as it stands; both answer the same test
recordings. With `--lakes` v1's recipe and the presets `default` and `ward` are trained once on each of five lakes, with
noise tracks, rooms and speakers of their own; with `--same-devices` the device tells nothing of the class there, with
`--ablation` the default recipe is trained there too with one ingredient less, for each ingredient.
Each finished training is one line of OUT/results.jsonl; table and figures are made from that file alone.
What was reduced, and what came of it: docs/study-ward-noise.md.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import machine
from bench.ward_report import (
    ABLATION,
    ANSWERS,
    CURVES,
    DEFAULT,
    OURS,
    SNRS,
    V1,
    ablation_report,
    lakes_report,
    read,
    report,
)
from spira_train import config as configuration
from spira_train import extract, featurise, memory, noise, simulate
from spira_train.audio import as_float, from_flac
from spira_train.config import Config, ModelConfig, TrainConfig
from spira_train.dataset import Dataset
from spira_train.features import FeatureExtractor, cut
from spira_train.model import build, parameters
from spira_train.rng import Random
from spira_train.store import Lake
from spira_train.tracking import Tracker
from spira_train.train import fit

SEEDS = (42, 43, 44, 45, 46)
# Every patient in a ward, every control at home; age, sex and device as in SPIRA's first phase. As many recordings to
# train on as SPIRA had; far more to test on, as its 108 cannot tell two recipes apart that differ by five points
CONFOUNDED = {"seed": 7, "subjects": 1700, "days": 1, "damaged": 0, "ward": 1, "age": 1, "sex": 1, "device": 1}
SPLIT = {"split.validation": 0.05, "split.test": 0.78}
# The comparison of two recipes needs many draws of noise: a lake of its own, smaller, for each training
LAKES = (101, 102, 103, 104, 105)
LAKE = {**CONFOUNDED, "subjects": 900}
LAKE_SPLIT = {"split.validation": 0.10, "split.test": 0.57}
EQUAL_LAKES = (201, 202, 203, 204, 205)  # `--same-devices`: patients and controls draw their device alike
PRESETS = (DEFAULT, "ward")  # ours, on the lakes
# Of v1's recipe: 1000 epochs, a window every second, all windows of a file, fresh noise each epoch, warm-up 1000
REDUCED = {
    "features.step_seconds": 3,
    "noise.variants": 4,
    "train.epochs": 30,
    "train.warmup_steps": 200,
    "train.patience": 10,
}


@dataclass(frozen=True)
class OneWindow(Dataset):
    """A data set that gives one window of each recording, drawn anew each time: v1's network is slow on a processor."""

    luck: np.random.Generator = field(default_factory=np.random.default_rng)

    def rows(self, picked: Any) -> tuple[np.ndarray, np.ndarray]:
        """As `Dataset.rows`, with one row a recording."""
        chosen = np.asarray(picked)
        first, size = self.offsets[chosen], np.diff(self.offsets)[chosen]
        return first + self.luck.integers(size), np.arange(len(chosen))


def dataset(kind: type[Dataset], *parts: tuple[np.ndarray, np.ndarray, Any]) -> Dataset:
    """What `featurise.compute` gave for some groups of recordings, as one data set."""
    variants = np.concatenate([np.concatenate([clean[None], noisy]) for clean, noisy, _ in parts], axis=1)
    index = [row for *_, table in parts for row in table.select(["recording", "label"]).to_pylist()]
    starts = [i for i, row in enumerate(index) if i == 0 or row["recording"] != index[i - 1]["recording"]]
    labels = np.array([index[i]["label"] for i in starts], np.float32)
    return kind(variants, np.array([*starts, len(index)]), labels, [index[i]["recording"] for i in starts])


def catalogue(lake: Lake, config: Config) -> tuple[noise.Track, ...]:
    """The lake's noise tracks, by split."""
    return noise.catalogue(lake, salt=config.split.salt, test=config.noise.test)


@lru_cache(maxsize=1)
def prepare(folder: Path, config: Config, counts: tuple[int, int] | None) -> dict[str, Dataset]:
    """Training and validation data; `counts`: v1's law, noises in (controls, patients); None: the recipe's own."""
    lake = Lake(str(folder / "lake"))
    tracks = noise.load(lake, catalogue(lake, config), "train")
    splits = {}
    for split in ("train", "validation"):
        rows = featurise.manifest(lake, config.partition, (split,))
        if counts is None:
            splits[split] = dataset(Dataset, featurise.compute(lake, config.partition, rows, config, tracks))
            continue
        parts = []
        for label, count in enumerate(counts):
            variants = (config.noise.variants if split == "train" else 1) if any(counts) else 0
            law = config.noise.model_copy(update={"inserts": count, "variants": variants})
            of = [row for row in rows if row["label"] == label]
            parts.append(
                featurise.compute(lake, config.partition, of, config.model_copy(update={"noise": law}), tracks)
            )
        splits[split] = dataset(OneWindow if split == "train" else Dataset, *parts)
        if any(counts) and split == "validation":  # v1 never validated without its noise
            held = splits[split]
            splits[split] = Dataset(held.variants[1:], held.offsets, held.labels, held.recordings)
    return splits


def questions(lake: Lake, config: Config, conditions: Sequence[str]) -> Dataset:
    """The test recordings as features, each condition a variant."""
    rows = featurise.manifest(lake, config.partition, ("test",))
    tracks = noise.load(lake, catalogue(lake, config), "test")  # never heard in training
    settings = config.features.model_dump()
    size, step = (round(settings.pop(f"{name}_seconds") * config.features.sample_rate) for name in ("window", "step"))
    extractor, random = FeatureExtractor(**settings).eval(), Random(0)
    blocks, lengths = [], [0]
    for row in rows:
        speech = as_float(from_flac(lake.read("audio", config.partition, row["file"])))  # (T,)
        draw = random.stream("noise", row["recording"])
        low, high = config.noise.min_peak, config.noise.max_peak  # v1's limits
        ward = noise.insert(np.zeros_like(speech), tracks, inserts=1, min_peak=low, max_peak=high, rng=draw)  # (T,)
        heard = [speech, speech + ward, *(speech + noise.at_snr(speech, ward, snr) for snr in SNRS)][: len(conditions)]
        windows = torch.stack([cut(torch.from_numpy(one), size, step) for one in heard])  # (A, W, size)
        with torch.inference_mode():
            mfcc = extractor(windows.flatten(0, 1)[:, None])[:, 0]  # (A * W, frames, n_mfcc)
        blocks.append(mfcc.unflatten(0, windows.shape[:2]).numpy())  # (A, W, frames, n_mfcc)
        lengths.append(windows.shape[1])
    labels = np.array([row["label"] for row in rows], np.float32)
    return Dataset(np.concatenate(blocks, axis=1), np.cumsum(lengths), labels, [row["subject"] for row in rows])


@torch.inference_mode()
def answer(network: torch.nn.Module, asked: Dataset, conditions: Sequence[str]) -> dict[str, list[float]]:
    """Condition -> a probability for each recording: the mean over its windows, as v1 decided."""
    network.eval()
    answers = {}
    for name, windows in zip(conditions, asked.variants, strict=True):
        parts = (torch.from_numpy(windows[i : i + 16])[:, None] for i in range(0, len(windows), 16))
        each = torch.cat([torch.sigmoid(network(part)) for part in parts]).numpy()  # (N,)
        sums = np.add.reduceat(each, asked.offsets[:-1])
        answers[name] = [round(float(p), 4) for p in sums / np.diff(asked.offsets)]
    return answers


@dataclass(frozen=True)
class Job:
    """One row of the table: how it is trained."""

    name: str
    preset: str
    overrides: dict[str, Any]
    counts: tuple[int, int] | None = None  # v1's law; None: the recipe's own
    conditions: tuple[str, ...] = ANSWERS


def rows(quick: Mapping[str, Any]) -> list[Job]:
    """The rows of the main lake; `quick` overrides every recipe (for a test of this study, not of a model)."""
    v1 = [
        Job(f"v1 {name}", "spira_v1", {**REDUCED, **quick}, counts, ANSWERS if name in CURVES else ANSWERS[:2])
        for name, counts in V1.items()
    ]
    return [Job(OURS, DEFAULT, dict(quick)), *v1]


def train_row(folder: Path, job: Job, seeds: Sequence[int]) -> None:
    """Train a row's seeds on the same features; each adds its answers to results.jsonl."""
    torch.set_num_threads(1)
    memory.keep()
    lake, scratch = Lake(str(folder / "lake")), folder / job.name.replace("/", "-")
    fixed = {**SPLIT, "partition": lake.partitions()[0], "threads": 1, "train.device": "cpu"}
    config = configuration.resolve(configuration.preset_files(job.preset), {**fixed, **job.overrides})
    # all seeds hear the same noise; rows that differ in training alone share their features
    splits = prepare(folder, config.model_copy(update={"model": ModelConfig(), "train": TrainConfig()}), job.counts)
    asked = questions(lake, config, job.conditions)
    _, _, frames, coefficients = splits["train"].variants.shape
    for seed in seeds:
        begun, used = time.perf_counter(), time.process_time()
        mine = config.model_copy(update={"seed": seed})
        tracker, checkpoint = Tracker(None, scratch, mine), scratch / f"{seed}.safetensors"
        train = splits["train"]
        if isinstance(train, OneWindow):
            train = replace(train, luck=Random(seed).stream("window"))
        checkpoint.unlink(missing_ok=True)  # windows are drawn in one go: a training is repeated whole
        state = fit(train, splits["validation"], mine, torch.device("cpu"), checkpoint, tracker)
        network = build(config.model.name, frames=frames, coefficients=coefficients, dropout=0.0)
        network.load_state_dict(state.best)
        line = {
            "name": job.name, "seed": seed, "parameters": parameters(network), "steps": state.steps,
            "best_epoch": state.best_epoch, "seconds": round(time.perf_counter() - begun, 1),
            "cpu_seconds": round(time.process_time() - used, 1), "validation": state.curves["accuracy"],
            "labels": asked.labels.astype(int).tolist(), "subjects": asked.recordings,
            "answers": answer(network, asked, job.conditions),
        }  # fmt: skip
        checkpoint.unlink()
        with (folder / "results.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def lake_jobs(quick: Mapping[str, Any], ablation: bool) -> list[Job]:
    """The rows that are trained on a lake of their own; `ablation`: also ours with each ingredient taken away."""
    less = ABLATION.items() if ablation else ()
    return [
        Job("v1 2/2", "spira_v1", {**REDUCED, **LAKE_SPLIT, **quick}, (2, 2)),
        *(Job(preset, preset, {**LAKE_SPLIT, **quick}) for preset in PRESETS),
        *(Job(name, DEFAULT, {**LAKE_SPLIT, **change, **quick}) for name, change in less),
    ]


def make(folder: Path, settings: Mapping[str, Any], split: Mapping[str, Any]) -> None:
    """The lake of a folder, where it is missing, and its audio."""
    lake = Lake(str(folder / "lake"))
    if not lake.partitions():
        simulate.run(lake=lake.uri, settings=simulate.read_settings(settings))
    config = configuration.resolve(configuration.preset_files("default"), {**split, "partition": lake.partitions()[0]})
    extract.run(lake=lake, config=config, partition=config.partition)


def work_lakes(
    folder: Path, lakes: Sequence[int], settings: Mapping[str, Any], jobs: Sequence[Job], processes: int
) -> None:
    """Each job once on each lake; a lake's number is its seed and the training's."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        trained = []
        for lake in lakes:
            place = folder / str(lake)
            make(place, {**settings, "seed": lake}, LAKE_SPLIT)
            done = {line["name"] for line in read(place)}
            trained += [pool.submit(train_row, place, job, [lake]) for job in jobs if job.name not in done]
        for one in trained:
            one.result()


def work(
    folder: Path, seeds: Sequence[int], settings: Mapping[str, Any], quick: Mapping[str, Any], processes: int
) -> None:
    """Make the lake where it is missing, and train every row and seed that results.jsonl does not hold."""
    make(folder, settings, SPLIT)
    done = {(line["name"], line["seed"]) for line in read(folder)}
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        trained = []
        for some in (seeds[:2], seeds[2:]):  # every row twice before any row in full: a study cut short shows all rows
            for job in rows(quick):
                missing = [seed for seed in some if (job.name, seed) not in done]
                if missing:
                    trained.append(pool.submit(train_row, folder, job, missing))
        for one in trained:
            one.result()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, required=True, help="folder of the lake and of results.jsonl")
    options.add_argument("--pictures", type=Path, help="folder of the figures (OUT)")
    options.add_argument("--only-report", action="store_true", help="train nothing, redraw from OUT/results.jsonl")
    options.add_argument("--tiny", action="store_true", help="one seed, one epoch, a small lake: a test of the study")
    options.add_argument("--lakes", action="store_true", help="v1's 2/2 and our presets, on lakes of their own")
    options.add_argument("--same-devices", action="store_true", help="lakes on which the device tells nothing")
    options.add_argument("--ablation", action="store_true", help="with --lakes: an ingredient less at a time")
    options.add_argument("--processes", type=int, default=2)
    chosen = options.parse_args()
    if chosen.ablation and not chosen.lakes:
        options.error("--ablation compares on lakes: add --lakes")
    if not chosen.only_report:
        quick = {"train.epochs": 1, "noise.variants": 1, "train.patience": 0} if chosen.tiny else {}
        fewer = {"subjects": 40, "noise_tracks": 4} if chosen.tiny else {}
        if chosen.lakes:
            lakes = EQUAL_LAKES if chosen.same_devices else LAKES
            settings = {**LAKE, "device": 1 - chosen.same_devices, **fewer}
            jobs = lake_jobs(quick, chosen.ablation)
            work_lakes(chosen.out, lakes[:2] if chosen.tiny else lakes, settings, jobs, chosen.processes)
        else:
            seeds = SEEDS[:1] if chosen.tiny else SEEDS
            work(chosen.out, seeds, {**CONFOUNDED, **fewer}, quick, chosen.processes)
    pictures = chosen.pictures or chosen.out
    figure = pictures / ("study-same-devices.svg" if chosen.same_devices else "study-lakes.svg")
    text = lakes_report(chosen.out, figure) if chosen.lakes else report(chosen.out, pictures)
    if chosen.ablation:
        text += "\n\n" + ablation_report(chosen.out, pictures / "study-ablation.svg")
    (chosen.out / "tables.md").write_text(text + "\n")
    print(f"{text}\n\n{machine.describe()}")


if __name__ == "__main__":
    main()
