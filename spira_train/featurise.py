"""The features step: clean windows and seeded, label-blind ward-noise variants of a partition, cached by fingerprint.

Test recordings are left out on purpose: what the gate will judge by never lies among training features.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from spira_train import channel, noise
from spira_train.audio import as_float, from_flac
from spira_train.config import Config
from spira_train.features import FeatureExtractor
from spira_train.outcome import BadInput
from spira_train.progress import track
from spira_train.rng import Random
from spira_train.split import SPLITS
from spira_train.step import fingerprint, perform
from spira_train.store import Lake, read_report

LIBRARIES = ("torch", "torchaudio", "numpy", "soundfile")


def run(*, lake: Lake, config: Config, partition: str) -> dict[str, Any]:
    """Write `features/<partition>/<fingerprint>/` of the lake: clean.npy, noisy.npy, index.parquet."""
    tracks = catalogue(lake, config)
    identity, inputs = identify(lake, config, partition, tracks)
    destination = lake.path("features", partition, identity[:16])

    def work(folder: Path) -> dict[str, Any]:
        rows = manifest(lake, partition, ("train", "validation"))
        sounds = noise.load(lake, tracks, "train") if tracks else []
        clean, noisy, index = compute(lake, partition, rows, config, sounds)
        np.save(folder / "clean.npy", clean)
        np.save(folder / "noisy.npy", noisy)
        pq.write_table(index, folder / "index.parquet")
        return {"recordings": len(rows), "windows": len(clean), "variants": len(noisy), "shape": list(clean.shape[1:])}

    return perform("features", identity, lake.fs, destination, work, inputs) | {"folder": destination}


def catalogue(lake: Lake, config: Config) -> tuple[noise.Track, ...]:
    """The noise tracks that features need: none where no noisy variants are asked for."""
    return noise.catalogue(lake, salt=config.split.salt, test=config.noise.test) if config.noise.variants else ()


def identify(lake: Lake, config: Config, partition: str, tracks: Sequence[noise.Track]) -> tuple[str, dict[str, str]]:
    """(fingerprint, inputs) of a partition's features; raises `BadInput` where its audio is missing."""
    audio = read_report(lake.fs, lake.path("audio", partition))
    if audio is None:
        raise BadInput(f"{lake.path('audio', partition)}: no extracted audio; run `spira-train extract` first")
    inputs = {"audio": audio["outputs"]["manifest.parquet"], "noise": noise.noise_digest(tracks)}
    choices = {name: getattr(config, name).model_dump(mode="json") for name in ("features", "noise")}
    choices |= {"seed": config.seed, "threads": config.threads}
    return fingerprint("features", module="featurise", config=choices, inputs=inputs, libraries=LIBRARIES), inputs


def finished(lake: Lake, config: Config, partitions: Sequence[str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Partition -> (folder, report) of its finished features; partitions refused by extract are not among them."""
    found = {}
    tracks = catalogue(lake, config)
    for key in partitions:
        if read_report(lake.fs, lake.path("audio", key)) is None:
            if key == config.partition:
                raise BadInput(f"partition {key}: no extracted audio; run `spira-train extract` first")
            continue
        folder = f"features/{key}/{identify(lake, config, key, tracks)[0][:16]}"
        report = read_report(lake.fs, lake.path(folder))
        if report is None:
            raise BadInput(f"{lake.path(folder)}: no features; run `spira-train features` first")
        found[key] = (folder, report)
    return found


def means(lake: Lake, config: Config, partitions: Sequence[str]) -> dict[str, list[float]]:
    """Recording -> the mean of its clean features over windows and frames, (n_mfcc,), of what was trained on."""
    found: dict[str, list[float]] = {}
    for folder, _ in finished(lake, config, partitions).values():
        clean = np.load(io.BytesIO(lake.read(folder, "clean.npy"))).mean(1)  # (N, n_mfcc)
        names = np.array(pq.read_table(io.BytesIO(lake.read(folder, "index.parquet")))["recording"])  # (N,)
        for name in np.unique(names):
            found[str(name)] = clean[names == name].mean(0).tolist()
    return found


def manifest(lake: Lake, partition: str, splits: Sequence[str] = SPLITS) -> list[dict[str, Any]]:
    """The manifest rows of a partition that stand in `splits`."""
    with lake.fs.open(lake.path("audio", partition, "manifest.parquet"), "rb") as stream:
        rows = pq.read_table(stream).to_pylist()
    return [row for row in rows if row["split"] in splits]


def compute(
    lake: Lake, partition: str, rows: Sequence[dict[str, Any]], config: Config, tracks: Sequence[noise.Signal]
) -> tuple[np.ndarray, np.ndarray, pa.Table]:
    """(clean (N, frames, n_mfcc), noisy (V, N, frames, n_mfcc), index of N rows) for the recordings `rows`.

    tracks: the noise that training may hear, each (T,).
    """
    torch.set_num_threads(config.threads)
    settings = config.features.model_dump()
    size = round(settings.pop("window_seconds") * config.features.sample_rate)
    step = round(settings.pop("step_seconds") * config.features.sample_rate)
    extractor = FeatureExtractor(**settings).eval()
    voices: list[noise.Signal] = []
    if config.noise.crowd and config.noise.variants:
        voices = [_speech(lake, partition, row) for row in rows if row["split"] == "train"]
    law = config.noise.insertion()
    law |= {"crowd": config.noise.crowd, "voices": voices, "reshape": config.noise.reshape}
    random = Random(config.seed)
    blocks: list[np.ndarray] = []
    columns: dict[str, list] = {"recording": [], "subject": [], "label": [], "split": [], "window": []}
    for row in track(rows, f"features {partition}", len(rows)):
        speech = _speech(lake, partition, row)  # (T,)
        # the draw depends on the seed and the recording, never on the label
        versions = [speech]
        for variant in range(config.noise.variants):
            loud = noise.insert(speech, tracks, **law, rng=random.stream("noise", row["recording"], variant))  # (T,)
            device = random.stream("channel", row["recording"], variant)
            versions.append(channel.any_device(loud, device) if device.random() < config.noise.channel else loud)
        with torch.inference_mode():
            each = [extractor.windows(torch.from_numpy(v), size, step) for v in versions]  # (W, 1, frames, n_mfcc)
        mfcc = torch.cat(each)[:, 0].numpy()  # ((1 + V) * W, frames, n_mfcc)
        count = len(mfcc) // len(versions)
        blocks.append(mfcc.reshape(len(versions), count, *mfcc.shape[1:]))
        for name in ("recording", "subject", "label", "split"):
            columns[name] += [row[name]] * count
        columns["window"] += range(count)
    if not blocks:
        with torch.inference_mode():
            blocks.append(np.zeros((1 + config.noise.variants, 0, *extractor(torch.zeros(1, 1, size)).shape[2:]), "f4"))
    everything = np.concatenate(blocks, axis=1)  # (1 + V, N, frames, n_mfcc)
    return everything[0], everything[1:], pa.table(columns)


def _speech(lake: Lake, partition: str, row: dict[str, Any]) -> noise.Signal:
    """A recording of the manifest, (T,)."""
    return as_float(from_flac(lake.read("audio", partition, row["file"])))
