"""How right the served models were, by version, from the diagnoses that were entered later.

Who gets a later diagnosis is no random choice, so this is a watch over the model and no test of it. An inconclusive
answer is neither right nor wrong: it is counted by itself.
"""

import json
import math
from collections import Counter, defaultdict

from fsspec.core import url_to_fs
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from serve.app import metrics
from serve.app.records import COMPLETED, Inference
from spira_train.live import Live, Share
from spira_train.store import put

Z = 1.959964  # of the normal distribution, two-sided 95 %
SAYS = {"positive": "patient", "negative": "control"}


class Accuracy(Live):
    """What spira_train/live.py reads, and how many of each there were."""

    patients: int
    controls: int
    right: int


def wilson(right: int, n: int) -> Share | None:
    """right of n with an interval that holds for few as well (Wilson 1927); None for none.

    >>> wilson(8, 10).low, wilson(8, 10).high
    (0.4902, 0.9433)
    """
    if not n:
        return None
    p, spread = right / n, Z * Z / n
    middle = (p + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Share(value=round(p, 4), low=round(low, 4), high=round(high, 4))


def counted(counts: Counter[tuple[str, str]]) -> Accuracy:
    """counts: (diagnosis, label) -> how many."""
    right = {label: counts[said, label] for said, label in SAYS.items()}
    conclusive = {label: sum(counts[said, label] for said in SAYS) for label in SAYS.values()}
    total = {label: sum(n for (_, known), n in counts.items() if known == label) for label in SAYS.values()}
    n = sum(counts.values())
    return Accuracy(
        n=n,
        patients=total["patient"],
        controls=total["control"],
        inconclusive=n - sum(conclusive.values()),
        right=sum(right.values()),
        accuracy=wilson(sum(right.values()), sum(conclusive.values())),
        sensitivity=wilson(right["patient"], conclusive["patient"]),
        specificity=wilson(right["control"], conclusive["control"]),
    )


def compute(session: Session) -> dict[str, Accuracy]:
    """By version, all that is known now."""
    asked = select(Inference.version, Inference.diagnosis, Inference.label, func.count())
    asked = asked.where(Inference.state == COMPLETED, Inference.label.is_not(None), Inference.version.is_not(None))
    found: defaultdict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    asked = asked.group_by(Inference.version, Inference.diagnosis, Inference.label)
    for version, diagnosis, label, count in session.execute(asked):
        found[str(version)][str(diagnosis), str(label)] += count
    return {version: counted(counts) for version, counts in sorted(found.items())}


def write(file: str, known: dict[str, Accuracy]) -> None:
    """Tell Prometheus, and whoever reads `file`: replaced whole, and only where something has changed."""
    for gauge in (metrics.live_accuracy, metrics.live_labels):
        gauge.clear()
    for version, one in known.items():
        metrics.live_labels.labels(version).set(one.n)
        if one.accuracy:
            metrics.live_accuracy.labels(version).set(one.accuracy.value)
    content = json.dumps({version: one.model_dump() for version, one in known.items()}, indent=1).encode() + b"\n"
    fs, path = url_to_fs(file)
    if fs.exists(path) and fs.cat_file(path) == content:
        return
    put(fs, path, content)
