"""Metrics by recording, each with a 95 % interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score

CONFIDENCE = 0.95


def measure(
    labels: Sequence[int], probabilities: Sequence[float], threshold: float, draws: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Metrics of one probe: name -> {value, low, high}, and `confusion` [[tn, fp], [fn, tp]].

    labels: (R,) 0 control, 1 patient; probabilities: (R,). Proportions carry Wilson intervals; F1 and AUC carry
    percentiles of a bootstrap that draws within each class. Raises `ValueError` on a NaN or on a missing class.
    """
    y, p = np.asarray(labels, int), np.asarray(probabilities, float)
    if not np.isfinite(p).all():
        raise ValueError("a probability is not a number")
    if set(y.tolist()) != {0, 1}:
        raise ValueError("both classes are needed")
    positive = (p > threshold).astype(int)
    table = confusion_matrix(y, positive, labels=[0, 1])
    (tn, fp), (fn, tp) = table.tolist()
    f1_draws, auc_draws = _bootstrap(y, p, positive, draws, rng)
    return {
        "accuracy": _proportion(tn + tp, len(y)),
        "sensitivity": _proportion(tp, tp + fn),
        "specificity": _proportion(tn, tn + fp),
        "f1": _interval(float(f1_score(y, positive)), f1_draws),
        "auc": _interval(float(roc_auc_score(y, p)), auc_draws),
        "confusion": [[tn, fp], [fn, tp]],
    }


def _proportion(hits: int, total: int) -> dict[str, float]:
    interval = binomtest(hits, total).proportion_ci(CONFIDENCE, method="wilson")
    return {"value": hits / total, "low": float(interval.low), "high": float(interval.high)}


def _interval(value: float, draws: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"value": value, "low": float(low), "high": float(high)}


def _bootstrap(
    y: np.ndarray, p: np.ndarray, positive: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    patients, controls = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    # how often each recording is drawn, (draws, R of the class): resampling is then two matrix products
    some_patients = rng.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), size=draws)
    some_controls = rng.multinomial(len(controls), np.full(len(controls), 1 / len(controls)), size=draws)
    difference = p[patients][:, None] - p[controls][None]  # (patients, controls)
    wins = (difference > 0) + 0.5 * (difference == 0)  # (patients, controls)
    auc = np.einsum("dp,pc,dc->d", some_patients, wins, some_controls, optimize=True) / wins.size
    tp, fp = some_patients @ positive[patients], some_controls @ positive[controls]
    f1 = 2 * tp / np.maximum(tp + fp + len(patients), 1)
    return f1, auc
