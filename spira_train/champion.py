"""The champion on today's test set: asked through its own archive and its own code, compared recording by recording."""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from spira_train.metrics import Sample, gain, mcnemar
from spira_train.outcome import TryAgain
from spira_train.registry import CHAMPION, Registry
from spira_train.slices import groups
from spira_train.store import digest_file

Signal = NDArray[np.float32]
ASKED = ("clean", "ward_noise")
# Runs in a process of its own, on the modules that lie in the archive: what is compared is what is served.
_ASK = """
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy as np, torch
from pathlib import Path
from spira_train import inference
torch.set_num_threads(int(sys.argv[3]))
predictor = inference.load(Path(sys.argv[1]))
sound = np.memmap(sys.argv[2] + "/sound.f32", "<f4", "r")
ends = json.loads(Path(sys.argv[2], "ends.json").read_text())
calibrate = getattr(predictor, "calibrate", lambda probability: probability)
answers = []
for start, end in zip([0, *ends[:-1]], ends):
    (found,) = predictor.predict([torch.from_numpy(np.array(sound[start:end]))])
    answers.append(float(calibrate(found.probability)))
json.dump({"answers": answers, "threshold": predictor.description["decision"]["threshold"]}, sys.stdout)
"""


@dataclass(frozen=True)
class Champion:
    """The version that the registry calls champion. archive: the SHA-256 of its archive."""

    version: str
    number: str
    archive: str
    weights: str


def of(version: Any) -> Champion:
    """A model version of MLflow as a champion."""
    tags = version.tags
    return Champion(tags["version"], str(version.version), tags["archive"], tags["weights"])


def find(registry: Registry) -> Champion | None:
    """The registry's champion, or None where there is none yet. Raises `TryAgain` where MLflow is away."""
    number = registry.aliases().get(CHAMPION)
    return None if number is None else of(registry.versions()[number])


def ask(
    registry: Registry, champion: Champion, sounds: Iterable[tuple[str, Signal]], folder: Path, threads: int
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What the champion answers: ({"answers": probe -> calibrated probabilities, "threshold"}, its data's statistics).

    sounds: (probe, waveform (T,)). folder: a scratch folder. Raises `TryAgain` unless its archive is whole, the one on
    record, and able to run here.
    """
    unpacked = _fetch(registry, champion, folder)
    names, ends, length = [], [], 0
    with (folder / "sound.f32").open("wb") as out:  # a test set may be larger than memory
        for name, signal in sounds:
            names.append(name)
            out.write(signal.astype("<f4").tobytes())
            length += len(signal)
            ends.append(length)
    (folder / "ends.json").write_text(json.dumps(ends))
    command = [sys.executable, "-I", "-c", _ASK, str(unpacked), str(folder), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise TryAgain(f"the champion cannot be asked with the libraries that are installed here: {last[:200]}")
    found = json.loads(done.stdout)
    answers: dict[str, list[float]] = {}
    for name, answer in zip(names, found["answers"], strict=True):
        answers.setdefault(name, []).append(answer)
    statistics = unpacked / "statistics.json"
    known = json.loads(statistics.read_text()) if statistics.is_file() else None
    return {"answers": answers, "threshold": found["threshold"]}, known


def compare(
    rows: Sequence[Mapping[str, Any]],
    sample: Sample,
    ours: tuple[Mapping[str, Sequence[float]], Mapping[str, float]],
    theirs: Mapping[str, Any],
    least: int,
) -> dict[str, Any]:
    """Paired comparison on the same recordings: probe -> {auc_gain, accuracy_gain, mcnemar, won, lost}, and `slices`.

    ours: (probe -> (R,) probabilities, decision) of the challenger; theirs: what `ask` returned. Intervals are paired
    over the sample's draws; those of 90 % have an end that is exceeded with 95 % confidence. least: recordings of a
    class that a slice needs.
    """
    asked, thresholds = ours[0], (ours[1]["threshold"], theirs["threshold"])
    found: dict[str, Any] = {
        probe: _compare(sample, asked[probe], answers, thresholds) for probe, answers in theirs["answers"].items()
    }
    found["slices"] = {}
    for name, member in groups(rows).items():
        part = sample.part(member)
        if min((part.labels == 0).sum(), (part.labels == 1).sum()) >= least:
            before, now = (np.asarray(side["clean"])[member].tolist() for side in (theirs["answers"], asked))
            # many slices are asked: each interval is wide enough that chance alone seldom calls one worse
            found["slices"][name] = _compare(part, now, before, thresholds, confidence=0.99)
    return found


def _fetch(registry: Registry, champion: Champion, folder: Path) -> Path:
    archive, unpacked = registry.download(champion.number, folder), folder / "unpacked"
    digest = digest_file(archive)
    if digest != champion.archive:
        raise TryAgain(
            f"MLflow's archive of the champion {champion.version} is not the registered one (SHA-256 {digest[:12]}, "
            f"registered {champion.archive[:12]}); put it back from the model store"
        )
    try:
        with ZipFile(archive) as content:
            content.extractall(unpacked)
    except BadZipFile:
        raise TryAgain(f"MLflow's archive of the champion {champion.version} is damaged") from None
    return unpacked


def _compare(
    sample: Sample,
    ours: Sequence[float],
    theirs: Sequence[float],
    thresholds: tuple[float, float],
    confidence: float = 0.90,
) -> dict[str, Any]:
    right, were = (
        (np.asarray(p) > threshold) == (sample.labels == 1)
        for p, threshold in zip((ours, theirs), thresholds, strict=True)
    )
    return {
        "auc_gain": gain(sample, ours, theirs, confidence),
        "accuracy_gain": float(right.mean() - were.mean()),
        "mcnemar": mcnemar(right, were),
        "won": int((right & ~were).sum()),
        "lost": int((~right & were).sum()),
    }
