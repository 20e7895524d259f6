"""Groups of the test set that must be served as well as the whole: sex, age band, site, device, cause.

A group that is too small to judge is never passed in silence: it is listed as unproven.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spira_train.metrics import Sample, measure, proportion

BANDS = ((0, 40, "under 40"), (40, 60, "40 to 59"), (60, 200, "60 and over"))
# `cause` is known of patients only: each is compared with all controls.
DIMENSIONS = ("sex", "age", "site", "device", "cause")

Rows = Sequence[Mapping[str, Any]]


def groups(rows: Rows) -> dict[str, NDArray[np.bool_]]:
    """`dimension: value` -> which of `rows` belong to it, (R,); only values that occur."""
    found: dict[str, NDArray[np.bool_]] = {}
    controls = np.array([row["label"] == 0 for row in rows])
    for dimension in DIMENSIONS:
        values = np.array([_value(row, dimension) for row in rows])
        for value in sorted(set(values.tolist()) - {""}):
            member = values == value
            found[f"{dimension}: {value}"] = (member | controls) if dimension == "cause" else member
    return found


def measured(rows: Rows, sample: Sample, answers: Sequence[float], threshold: float, least: int) -> dict[str, Any]:
    """Slice -> {controls, patients, verdict, auc, accuracy, sensitivity, specificity}, each metric where it can be had.

    least: so many recordings of a class make it large enough. `verdict` is "measured", "one class" (the other is too
    small) or "too few".
    """
    found: dict[str, Any] = {}
    p = np.asarray(answers, float)
    for name, member in groups(rows).items():
        part, scores = sample.part(member), p[member]
        counts = {label: int((part.labels == label).sum()) for label in (0, 1)}
        entry: dict[str, Any] = {"controls": counts[0], "patients": counts[1]}
        if min(counts.values()) >= least:
            full = measure(part, scores.tolist(), threshold)
            metrics = ("auc", "accuracy", "sensitivity", "specificity")
            entry |= {"verdict": "measured"} | {metric: full[metric] for metric in metrics}
        elif max(counts.values()) >= least:
            label = int(counts[1] >= least)
            of_class = part.labels == label
            hits = (scores[of_class] > threshold) == bool(label)
            entry["verdict"] = "one class"
            entry["sensitivity" if label else "specificity"] = proportion(hits, part.subjects[of_class])
        else:
            entry["verdict"] = "too few"
        found[name] = entry
    return found


def _value(row: Mapping[str, Any], dimension: str) -> str:
    if dimension == "age":
        age = row.get("age")
        return next((name for low, high, name in BANDS if age is not None and low <= age < high), "")
    return str(row.get(dimension) or "")
