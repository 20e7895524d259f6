"""Hold a trained model against the gate on the frozen test set; write the quality blessing or say why not."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch

from spira_train import gate as gates
from spira_train import inference, noise, report
from spira_train.audio import as_float, from_flac
from spira_train.config import Config
from spira_train.dataset import window_of
from spira_train.featurise import manifest
from spira_train.metrics import measure
from spira_train.outcome import BadInput, Exit
from spira_train.progress import track
from spira_train.rng import Random
from spira_train.step import fingerprint, perform
from spira_train.store import Lake, digest_file, digest_json, local_lake, read_report

LIBRARIES = ("torch", "torchaudio", "numpy", "scikit-learn", "scipy", "matplotlib")
# probe -> which of the two answers (clean or in ward noise) counts for controls and for patients
PROBES = {
    "clean": ("clean", "clean"),
    "ward_noise": ("noisy", "noisy"),
    "ward_noise_controls": ("noisy", "clean"),
    "ward_noise_patients": ("clean", "noisy"),
}


def run(*, run: Path, lake: Lake, config: Config, gate: Path) -> dict[str, Any]:
    """Write `validate/` of a run. The report's summary carries `exit` 20 and the reasons where the gate refuses."""
    plan = gates.read(gate)
    trained = read_report(*local_lake(run / "train"))
    if trained is None:
        raise BadInput(f"{run / 'train'}: no trained model; run `spira-train train` first")
    partitions = [key for key in window_of(config, lake.partitions()) if read_report(lake.fs, lake.path("audio", key))]
    rows = [row | {"partition": key} for key in partitions for row in manifest(lake, key, ("test",))]
    tracks = noise.catalogue(lake, salt=config.split.salt, test=config.noise.test)
    inputs = {
        "model": trained["outputs"]["model.safetensors"],
        "description": trained["outputs"]["model.json"],
        "curves": trained["outputs"]["curves.json"],
        "test_set": digest_json(sorted([row["recording"], row["label"]] for row in rows)),
        "noise": noise.noise_digest(tracks),
        "gate": plan.digest(),
    }
    choices = {"seed": config.seed, "threads": config.threads, "validation": config.validation.model_dump(mode="json")}
    identity = fingerprint("validate", module="validate", config=choices, inputs=inputs, libraries=LIBRARIES)

    def work(folder: Path) -> dict[str, Any]:
        torch.set_num_threads(config.threads)
        predictor = inference.load(run / "train")
        answers = ask(predictor, lake, rows, plan, noise.load(lake, tracks, "test"))
        per_class = {
            name: sum(row["label"] == label for row in rows) for label, name in ((0, "controls"), (1, "patients"))
        }
        metrics = probe(rows, answers, predictor.description["decision"]["threshold"], config)
        checks = gates.judge(plan, metrics, per_class)
        failed = [check.text for check in checks if not check.passed]
        verdict = {
            "verdict": "refused" if failed else "blessed",
            "reasons": failed,
            "checks": [asdict(check) for check in checks],
            "test_set": {"digest": inputs["test_set"], **per_class},
        }
        _write(folder / "metrics.json", metrics)
        _write(folder / "verdict.json", verdict)
        if not failed:
            binding = {name: inputs[name] for name in ("model", "description", "test_set", "gate")}
            _write(folder / "blessing.json", {"blessing": "quality", **verdict, **binding})
        _predictions(folder / "predictions.parquet", rows, answers)
        if rows:
            _golden(folder / "golden", predictor, lake, rows, config.validation.golden)
        curves = json.loads((run / "train" / "curves.json").read_text())
        decision = predictor.description["decision"]
        page = report.render(config, trained, metrics, verdict, rows, answers, curves, decision)
        (folder / "report.html").write_text(page, encoding="utf-8")
        summary: dict[str, Any] = {"verdict": verdict["verdict"], "reasons": failed, "test_set": per_class}
        if metrics.get("clean"):
            summary |= {name: round(metrics["clean"][name]["value"], 4) for name in ("accuracy", "auc", "f1")}
        if failed:
            summary |= {"exit": int(Exit.REFUSED), "message": "refused by the gate: " + "; ".join(failed)}
        return summary

    return perform("validate", identity, *local_lake(run / "validate"), work, inputs)


def ask(
    predictor: inference.Predictor,
    lake: Lake,
    rows: Sequence[Mapping[str, Any]],
    plan: gates.Gate,
    tracks: Sequence[noise.Signal],
) -> dict[str, list[float]]:
    """The model's probability for each of `rows`: `clean`, and `noisy` with `tracks` that training never heard."""
    law = plan.noise.model_dump(include={"inserts", "min_peak", "max_peak"})
    # the gate's noise must not follow a run's seed: every model is asked the same questions
    random = Random(int(plan.digest()[:8], 16))
    answers: dict[str, list[float]] = {"clean": [], "noisy": []}
    for row in track(rows, "validate", len(rows)):
        speech = as_float(from_flac(lake.read("audio", row["partition"], row["file"])))  # (T,)
        loud = noise.insert(speech, tracks, **law, rng=random.stream("noise", row["recording"]))  # (T,)
        clean, noisy = predictor.predict([torch.from_numpy(speech), torch.from_numpy(loud)])
        answers["clean"].append(clean.probability)
        answers["noisy"].append(noisy.probability)
    return answers


def probe(
    rows: Sequence[Mapping[str, Any]], answers: Mapping[str, Sequence[float]], threshold: float, config: Config
) -> dict[str, Any]:
    """Metrics of every probe; a probe that cannot be measured is left out, which the gate takes as a refusal."""
    labels = [row["label"] for row in rows]
    random = Random(config.seed)
    metrics: dict[str, Any] = {}
    for name, by_class in PROBES.items():
        scores = [answers[by_class[label]][i] for i, label in enumerate(labels)]
        try:
            metrics[name] = measure(labels, scores, threshold, config.validation.bootstrap, random.stream("ci", name))
        except ValueError:
            continue
        if "clean" in metrics:
            drop = metrics["clean"]["accuracy"]["value"] - metrics[name]["accuracy"]["value"]
            metrics[name]["accuracy_drop"] = {"value": drop}
    return metrics


def _golden(
    folder: Path, predictor: inference.Predictor, lake: Lake, rows: Sequence[Mapping[str, Any]], count: int
) -> None:
    """A few test recordings of both classes with their answers: the model server must repeat them."""
    folder.mkdir()
    ordered = sorted(rows, key=lambda row: row["recording"])
    picked = [row for label in (0, 1) for row in [r for r in ordered if r["label"] == label][: max(1, count // 2)]]
    entries = []
    for number, row in enumerate(picked):
        speech = as_float(from_flac(lake.read("audio", row["partition"], row["file"])))  # (T,)
        file = folder / f"{number:02d}.wav"
        soundfile.write(file, speech, 16_000, subtype="PCM_16")
        (answer,) = predictor.predict([torch.from_numpy(speech)])
        entries.append({"file": file.name, "label": row["label"], "sha256": digest_file(file), **asdict(answer)})
    _write(folder / "golden.json", entries)


def _predictions(file: Path, rows: Sequence[Mapping[str, Any]], answers: Mapping[str, Sequence[float]]) -> None:
    columns = {name: [row[name] for row in rows] for name in ("recording", "partition", "label")}
    pq.write_table(pa.table(columns | {name: np.array(values) for name, values in answers.items()}), file)


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1, allow_nan=False))
