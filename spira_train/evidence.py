"""What the gate judges: metrics of every probe, slices, baselines, calibration. Pure: from answers to numbers."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from spira_train import baseline, probes, slices
from spira_train.baseline import BASELINES
from spira_train.metrics import Sample, calibration, gain, interval, means, measure, proportion, share, shift

Rows = Sequence[Mapping[str, Any]]
Answers = Mapping[str, Sequence[float]]


def gather(
    rows: Rows, others: Rows, sample: Sample, asked: Answers, decision: Mapping[str, float], least: int
) -> dict[str, Any]:
    """What was found: `metrics` (probe -> metric -> {value, low, high}), `slices`, `reliability`, `leaks`, `blind`.

    rows: the test set; others: what was trained on, for the baselines (`blind`: their answers) and the leaks. asked:
    probe -> (R,) calibrated probabilities. decision: threshold and band. least: recordings of a class that a slice
    needs. What cannot be measured is left out, which the gate takes as a refusal.
    """
    labels, threshold = sample.labels, decision["threshold"]
    everything = {name: list(values) for name, values in asked.items()}
    if {"clean", "ward_noise"} <= everything.keys():
        everything |= probes.swapped(everything, labels.tolist())
    everything |= probes.together(asked)
    metrics: dict[str, Any] = {}
    for name in (n for n in probes.NAMES if n in everything):
        with suppress(ValueError):
            metrics[name] = measure(sample, everything[name], threshold)
            if "clean" in metrics:
                metrics[name]["accuracy_drop"] = _drop(sample, everything["clean"], everything[name], threshold)
    found: dict[str, Any] = {
        "metrics": metrics,
        "slices": {},
        "reliability": [],
        "leaks": leaks(rows, others),
        "blind": {},
    }
    if "clean" not in metrics:
        return found
    clean = np.asarray(everything["clean"])
    for name, label in (("ward_noise_controls", 0), ("ward_noise_patients", 1)):
        if name in metrics:
            one = labels == label
            moved = np.asarray(everything["ward_noise"])[one]
            metrics[name]["score_shift"] = shift(sample.part(one), clean[one].tolist(), moved.tolist())
    if {"noise_alone", "silence"} <= metrics.keys():
        metrics["noise_alone"]["score_shift"] = shift(sample, everything["silence"], everything["noise_alone"])
    if "same_voices" in metrics:
        metrics["same_voices"]["room_share"] = share(sample, everything["clean"], everything["same_voices"])
    outside = np.abs(clean - threshold) >= decision["band"]
    metrics["clean"]["inconclusive"] = proportion(~outside, sample.subjects)
    if outside.any():
        right = (clean > threshold) == (labels == 1)
        metrics["clean"]["conclusive_accuracy"] = proportion(right[outside], sample.subjects[outside])
    for name in BASELINES if {row["label"] for row in others} == {0, 1} else ():
        blind = baseline.answers(name, others, rows)
        found["blind"][name] = blind
        metrics[f"baseline_{name}"] = measure(sample, blind, 0.5)
        metrics[f"baseline_{name}"]["gain"] = gain(sample, everything["clean"], blind)
    measured = calibration(sample, everything["clean"], threshold)
    found["reliability"] = measured.pop("reliability")
    metrics["calibration"] = measured
    found["slices"] = slices.measured(rows, sample, everything["clean"], threshold, least)
    return found


def leaks(test: Rows, others: Rows) -> dict[str, int]:
    """How many subjects and recordings of the test set stand in training or validation as well."""
    return {
        what: len({row[name] for row in test} & {row[name] for row in others})
        for name, what in (("subject", "subjects"), ("recording", "recordings"))
    }


def _drop(sample: Sample, before: Sequence[float], after: Sequence[float], threshold: float) -> dict[str, float]:
    was, now = ((np.asarray(p) > threshold) == (sample.labels == 1) for p in (before, after))
    lost = was.astype(float) - now  # (R,)
    return interval(float(lost.mean()), means(sample, lost))
