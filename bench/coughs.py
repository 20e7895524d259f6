"""Real recordings: coughs of covid19-cough, 5-fold by file, against what a linear model and a ruler can do.

    python -m bench.coughs [--data FOLDER] [--seeds 1 2]

The recipe is config/cough.yaml; it was chosen on the folds of seed 0, which are therefore not reported. Every system
learns from the same recordings and is asked about the same ones; the network keeps a part of them to choose its epoch
by, and answers as the model server does (`inference.Predictor`).
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchaudio.transforms import MelSpectrogram

from bench import machine
from spira_train import baseline, covid19_cough, extract, featurise, noise, train
from spira_train.audio import SAMPLE_RATE, as_float, from_flac
from spira_train.config import Config, preset_files, resolve
from spira_train.dataset import Dataset
from spira_train.inference import Predictor
from spira_train.metrics import Sample, auc, aucs, gain, interval
from spira_train.progress import track
from spira_train.rng import Random
from spira_train.store import Lake
from spira_train.tracking import Tracker

SHARED = Path(os.environ.get("SPIRA_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data")
CALLS, MESSAGES = covid19_cough.CALL_CENTER_DAY, covid19_cough.TELEGRAM_DAY
OURS, LINEAR, RICHER, RULER = "our network", "linear, log-mel", "linear, five statistics", "loudness and length"
NAMES = (OURS, LINEAR, RICHER, RULER)
DRAWS = 2000
STRENGTH = 0.01  # C of the linear models: the best of 1, 0.1 and 0.01 for them on the folds of seed 0

Array = np.ndarray
Answers = dict[str, Array]  # system -> probability of each recording (R,)
Row = dict[str, Any]  # asked, system, auc and gain with their intervals, balanced


@dataclass(frozen=True)
class Coughs:
    """A partition: its manifest rows, waveforms at 16 kHz, labels (R,) and statistics of log-mel bands (R, 200)."""

    rows: list[dict[str, Any]]
    waves: list[torch.Tensor]
    labels: Array
    statistics: Array


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=SHARED / "covid19-cough")
    options.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="seeds of the folds")
    options.add_argument("--folds", type=int, default=5)
    options.add_argument("--threads", type=int, default=1, help="CPU threads; the last digits depend on them")
    chosen = options.parse_args()
    started = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="spira-coughs-"))
    overrides = {"partition": CALLS, "threads": chosen.threads, "train.device": "cpu"}
    try:
        lake = land(chosen.data, folder / "lake")
        config = resolve(preset_files("cough"), overrides)
        found = measure(lake, config, chosen.seeds, chosen.folds, folder)
    finally:
        shutil.rmtree(folder)
    note = (
        f"{chosen.folds}-fold by file, fold seeds {', '.join(map(str, chosen.seeds))}; 95 % intervals of {DRAWS} "
        f"bootstrap draws, paired in the last column; balanced accuracy at the training part's share of positives; "
        f"{time.perf_counter() - started:.0f} s in all"
    )
    columns = ("asked", "system", "AUC", "balanced accuracy", "our AUC less its")
    rows = [
        (row["asked"], row["system"], shown(row["auc"]), f"{row['balanced']:.3f}", shown(row["gain"], "+.3f"))
        for row in found
    ]
    machine.show("Coughs told apart: COVID-19 positive or negative", columns, rows, note)


def land(data: Path, folder: Path) -> Lake:
    lake = Lake(str(folder))
    covid19_cough.run(source=data, lake=lake.uri)
    for day in (CALLS, MESSAGES):
        extract.run(lake=lake, config=Config(partition=day), partition=day)
    return lake


def measure(lake: Lake, config: Config, seeds: Sequence[int], folds: int, scratch: Path) -> list[Row]:
    """The table: call centre by cross-validation for each fold seed, then telegram by a model of the call centre."""
    torch.set_num_threads(config.threads)
    calls, messages = (read(lake, day) for day in (CALLS, MESSAGES))
    windows, everything = features(lake, calls, config), np.arange(len(calls.labels))
    shuffles = {seed: StratifiedKFold(folds, shuffle=True, random_state=seed) for seed in seeds}
    jobs = [(seed, *pair) for seed in seeds for pair in shuffles[seed].split(everything, calls.labels)]
    found = {seed: {name: np.zeros(len(everything)) for name in (*NAMES, "cut")} for seed in seeds}
    with patch.object(train, "say", lambda line: None):  # one bar instead of a line an epoch
        for seed, learn, ask in track([*jobs, (seeds[0], everything, None)], "trainings", len(jobs) + 1):
            asked = messages if ask is None else part(calls, ask)
            answers = learn_and_ask(windows, calls, learn, asked, config, seed, scratch)
            answers["cut"] = np.full(len(asked.labels), calls.labels[learn].mean())
            for name, values in answers.items() if ask is not None else ():
                found[seed][name][ask] = values
    rows = [row for seed in seeds for row in report(f"call centre, folds {seed}", calls, found[seed])]
    return rows + report("telegram", messages, answers)


def learn_and_ask(
    windows: Dataset, calls: Coughs, learn: Array, asked: Coughs, config: Config, seed: int, scratch: Path
) -> Answers:
    """Every system fitted on the recordings `learn` of the call centre and asked about `asked`."""
    share = config.split.validation / (1 - config.split.test)
    fit, held = train_test_split(learn, test_size=share, random_state=seed, stratify=calls.labels[learn])
    checkpoint = scratch / "checkpoint.safetensors"
    checkpoint.unlink(missing_ok=True)
    device, tracker = torch.device("cpu"), Tracker(None, scratch, config)
    state = train.fit(pick(windows, fit), pick(windows, held), config, device, checkpoint, tracker)
    predictor = Predictor(train.describe(config, windows, state), state.best)
    heard = [prediction.probability for wave in asked.waves for prediction in predictor.predict([wave])]
    known = part(calls, learn)
    answers = {OURS: np.array(heard), RULER: np.array(baseline.answers("loudness_length", known.rows, asked.rows))}
    for name, width in ((LINEAR, 80), (RICHER, 200)):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=3000))
        model.fit(known.statistics[:, :width], known.labels)
        answers[name] = model.predict_proba(asked.statistics[:, :width])[:, 1]
    return answers


def report(where: str, asked: Coughs, answers: Answers) -> list[Row]:
    """One row a system; answers["cut"] (R,) is the probability above which a recording counts as positive."""
    sample = Sample.of(asked.labels.tolist(), [row["subject"] for row in asked.rows], DRAWS, Random(0).stream("coughs"))
    return [
        {
            "asked": f"{where}: {len(asked.labels)} files",
            "system": name,
            "auc": interval(auc(sample, answers[name]), aucs(sample, answers[name])),
            "balanced": balanced_accuracy_score(asked.labels, answers[name] > answers["cut"]),
            "gain": None if name == OURS else gain(sample, answers[OURS].tolist(), answers[name].tolist()),
        }
        for name in NAMES
    ]


def shown(value: Mapping[str, float] | None, form: str = ".3f") -> str:
    return f"{value['value']:{form}} ({value['low']:{form}} to {value['high']:{form}})" if value else ""


def read(lake: Lake, day: str) -> Coughs:
    """The accepted recordings of a partition."""
    rows = featurise.manifest(lake, day, ("train", "validation", "test"))
    waves = [torch.from_numpy(as_float(from_flac(lake.read("audio", day, row["file"])))) for row in rows]
    mel = MelSpectrogram(SAMPLE_RATE, n_fft=512, win_length=400, hop_length=160, n_mels=40, f_max=4000)
    return Coughs(rows, waves, np.array([row["label"] for row in rows]), np.stack([_bands(w, mel) for w in waves]))


def _bands(wave: torch.Tensor, mel: Callable[[torch.Tensor], torch.Tensor]) -> Array:
    """Mean, deviation, maximum, minimum and mean step over time of each log-mel band up to 4 kHz: (200,)."""
    bands = torch.log(mel(wave) + 1e-6)  # (40, frames)
    change = bands.diff(dim=1).std(1)
    return torch.cat([bands.mean(1), bands.std(1), bands.amax(1), bands.amin(1), change]).numpy()  # (200,)


def features(lake: Lake, calls: Coughs, config: Config) -> Dataset:
    """The windows that the network learns from, clean and noisy, as `spira-train features` makes them."""
    tracks = featurise.catalogue(lake, config)
    sounds = noise.load(lake, tracks, "train") if tracks else []
    clean, noisy, index = featurise.compute(lake, CALLS, calls.rows, config, sounds)
    starts = np.flatnonzero(index["window"].to_numpy() == 0)
    variants = np.concatenate([clean[None], noisy])  # (1 + V, N, frames, coefficients)
    names, labels = [row["recording"] for row in calls.rows], calls.labels.astype(np.float32)
    return Dataset(variants, np.append(starts, len(clean)), labels, names)


def pick(data: Dataset, chosen: Array) -> Dataset:
    """The recordings `chosen` of a data set, in that order."""
    lengths, (rows, _) = np.diff(data.offsets)[chosen], data.rows(chosen)
    names = [data.recordings[i] for i in chosen]
    return Dataset(data.variants[:, rows], np.append(0, np.cumsum(lengths)), data.labels[chosen], names)


def part(coughs: Coughs, chosen: Array) -> Coughs:
    rows, waves = ([values[i] for i in chosen] for values in (coughs.rows, coughs.waves))
    return Coughs(rows, waves, coughs.labels[chosen], coughs.statistics[chosen])


if __name__ == "__main__":
    main()
