"""Metrics by recording, each with a 95 % interval that takes the subject, not the recording, as what was drawn.

Two recordings of one person are not two pieces of evidence: resampling draws subjects, and a proportion's interval is
as wide as for so many subjects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from spira_train.calibration import log_odds

CONFIDENCE = 0.95
Z = 1.959964  # the standard normal's 97.5th percentile
BINS = 10  # of the reliability curve

Array = NDArray[Any]
Interval = dict[str, float]


@dataclass(frozen=True)
class Sample:
    """Who was asked.

    labels: (R,) 0 control, 1 patient; subjects: (R,); weights: (D, R) how often each bootstrap draw holds each.
    """

    labels: Array
    subjects: Array
    weights: Array

    @classmethod
    def of(cls, labels: Sequence[int], subjects: Sequence[Any], draws: int, rng: np.random.Generator) -> "Sample":
        """A sample with `draws` bootstrap draws of its subjects, within each class (a subject has one label)."""
        y, who = np.asarray(labels, int), np.asarray(subjects)
        weights = np.zeros((draws, len(y)))
        for label in (0, 1):
            chosen = np.flatnonzero(y == label)
            if len(chosen):
                people, owner = np.unique(who[chosen], return_inverse=True)
                drawn = rng.multinomial(len(people), np.full(len(people), 1 / len(people)), size=draws)
                weights[:, chosen] = drawn[:, owner]
        return cls(y, who, weights)

    def part(self, chosen: Array) -> "Sample":
        """The sample of the recordings in `chosen` (bool mask or indices)."""
        return Sample(self.labels[chosen], self.subjects[chosen], self.weights[:, chosen])

    @cached_property
    def both(self) -> bool:
        """Whether both classes are there."""
        return set(self.labels.tolist()) == {0, 1}

    def __len__(self) -> int:
        return len(self.labels)


def measure(sample: Sample, probabilities: Sequence[float], threshold: float) -> dict[str, Any]:
    """Metrics of one probe: name -> {value, low, high}, and `confusion` [[tn, fp], [fn, tp]].

    probabilities: (R,). Proportions carry Wilson intervals, F1 and AUC percentiles of the sample's draws. Raises
    `ValueError` on a NaN or on a missing class.
    """
    p = _numbers(probabilities)
    if not sample.both:
        raise ValueError("both classes are needed")
    y, positive = sample.labels, p > threshold
    table = confusion_matrix(y, positive, labels=[0, 1])
    return {
        "accuracy": proportion(positive == (y == 1), sample.subjects),
        "sensitivity": proportion(positive[y == 1], sample.subjects[y == 1]),
        "specificity": proportion(~positive[y == 0], sample.subjects[y == 0]),
        "f1": _f1(sample, positive),
        "auc": interval(auc(sample, p), aucs(sample, p)),
        "confusion": table.tolist(),
    }


def auc(sample: Sample, probabilities: Array) -> float:
    """Area under the ROC curve: how often a patient's answer lies above a control's, a tie counting half."""
    return float(_wins(sample, probabilities).mean())


def aucs(sample: Sample, probabilities: Array) -> Array:
    """The AUC of every draw, (D,)."""
    of_patients, of_controls = (sample.weights[:, sample.labels == label] for label in (1, 0))
    wins = (of_patients @ _wins(sample, probabilities) * of_controls).sum(1)  # (D,)
    return wins / np.maximum(of_patients.sum(1) * of_controls.sum(1), 1)


def means(sample: Sample, values: Array) -> Array:
    """The mean of `values` (R,) in every draw, (D,)."""
    return (sample.weights @ values) / np.maximum(sample.weights.sum(1), 1)


def interval(value: float, draws: Array, confidence: float = CONFIDENCE) -> Interval:
    """`value` with the percentiles of `draws` around it."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"value": float(value), "low": float(low), "high": float(high)}


def proportion(hits: Array, subjects: Array) -> Interval:
    """Share of `hits` (R,) with Wilson's interval, as wide as for the number of different `subjects`."""
    share, n = float(np.mean(hits)), len(np.unique(subjects))
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return {"value": share, "low": max(0.0, float(centre - half)), "high": min(1.0, float(centre + half))}


def shift(sample: Sample, before: Sequence[float], after: Sequence[float]) -> Interval:
    """Mean of `after` - `before` over the recordings: how far the answers were moved."""
    moved = _numbers(after) - _numbers(before)  # (R,)
    return interval(float(moved.mean()), means(sample, moved))


def gain(sample: Sample, ours: Sequence[float], theirs: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """AUC of `ours` less that of `theirs` on the same recordings, paired draw by draw."""
    a, b = _numbers(ours), _numbers(theirs)
    return interval(auc(sample, a) - auc(sample, b), aucs(sample, a) - aucs(sample, b), confidence)


def share(sample: Sample, whole: Sequence[float], part: Sequence[float]) -> Interval:
    """How much of what parts the classes in `whole` parts them in `part` as well, by the classes' mean log-odds.

    1 where `part` tells as much as `whole`, or where `whole` tells nothing. Log-odds, so that answers near 0 and 1
    count: a voice that is a patient's beyond doubt hides what its room adds.
    """
    of_whole, of_part = (_parted(sample, log_odds(_numbers(p))) for p in (whole, part))  # (1 + D,) each
    shares = np.where(of_whole > 0, of_part / np.maximum(of_whole, 1e-9), 1.0)
    return interval(float(shares[0]), shares[1:])


def mcnemar(ours: Array, theirs: Array) -> float:
    """McNemar's exact test: how probable so uneven a count of recordings that only one of two gets right is by chance.

    ours, theirs: (R,) whether each was right.
    """
    lost, won = int((~ours & theirs).sum()), int((ours & ~theirs).sum())
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def calibration(sample: Sample, probabilities: Sequence[float], threshold: float) -> dict[str, Any]:
    """How far probabilities can be taken at their word.

    ece: expected calibration error over ten bins; overconfidence: mean confidence less accuracy; brier: mean squared
    error; reliability: for each bin that holds any, {mean answer, share of patients with interval, recordings}.
    """
    p, y = _numbers(probabilities), sample.labels
    right = (p > threshold) == (y == 1)
    excess = np.maximum(p, 1 - p) - right  # (R,)
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    member = bins[:, None] == np.arange(BINS)  # (R, BINS)
    off = (y - p)[:, None] * member  # (R, BINS)
    draws = np.abs(sample.weights @ off).sum(1) / np.maximum(sample.weights.sum(1), 1)  # (D,)
    curve = [
        {"answer": float(p[at].mean()), "recordings": int(at.sum()), **proportion(y[at] == 1, sample.subjects[at])}
        for at in member.T
        if at.any()
    ]
    return {
        "ece": interval(float(np.abs(off.sum(0)).sum() / len(y)), draws),
        "overconfidence": interval(float(excess.mean()), means(sample, excess)),
        "brier": interval(float(np.square(p - y).mean()), means(sample, np.square(p - y))),
        "reliability": curve,
    }


def _numbers(probabilities: Sequence[float]) -> Array:
    p = np.asarray(probabilities, float)
    if not np.isfinite(p).all():
        raise ValueError("a probability is not a number")
    return p


def _parted(sample: Sample, values: Array) -> Array:
    """Mean of the patients' values less that of the controls', in the sample itself and in every draw, (1 + D,)."""
    weights = np.concatenate([np.ones((1, len(sample))), sample.weights])  # (1 + D, R)
    per_class = [weights * (sample.labels == label) for label in (1, 0)]
    patients, controls = (each @ values / np.maximum(each.sum(1), 1) for each in per_class)
    return np.asarray(patients - controls)


def _wins(sample: Sample, p: Array) -> Array:
    difference = p[sample.labels == 1][:, None] - p[sample.labels == 0][None]  # (patients, controls)
    return (difference > 0) + 0.5 * (difference == 0)


def _f1(sample: Sample, positive: Array) -> Interval:
    def score(weights: Array) -> Array:
        hits = weights @ (positive & (sample.labels == 1))
        return np.asarray(2 * hits / np.maximum(weights @ positive + weights @ (sample.labels == 1), 1e-12))

    return interval(float(score(np.ones(len(sample)))), score(sample.weights))
