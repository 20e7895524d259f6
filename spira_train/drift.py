"""Drift: how recordings differ from those that a model was trained on, by their distributions.

`statistics` describes the reference once, without a value of any one person; `compare` bins later recordings in the
same way. Two measures have to agree before a difference is called drift. The population stability index (PSI) says how
large it is: customarily below 0.1 is no shift, to 0.25 a moderate one, beyond it a large one (Siddiqi, Credit Risk
Scorecards, 2006). A chi-square test says whether chance explains it, since PSI grows as sets get smaller (by about
(bins - 1) * (1 / n + 1 / m), Yurdakul 2018). The test counts recordings: many of one speaker weigh as if independent.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from spira_train.config import DriftConfig
from spira_train.rng import Random

CATEGORICAL = ("label", "sex", "site", "device", "cause", "source_rate", "source_channels")
NUMERIC = ("age", "seconds", "rms_dbfs", "snr_db", "bandwidth_hz", "score")
UNKNOWN = "unknown"  # category and bin of the recordings that lack a value
BINS = 10  # deciles, as is usual for PSI
GROUP = 5  # fewest recordings in a bin of the reference, or behind a mean: below it a number would tell of persons
SMOOTHING = 0.5  # recordings added to each bin (Jeffreys), so that an empty one gives a finite PSI
RESAMPLES = 19_999  # tables drawn for each p-value; leaves 0.001 within reach after correction for 14 columns


@dataclass(frozen=True)
class Finding:
    """One comparison. `psi`, `p_value` and `limit` are None where there was nothing to compute."""

    name: str  # column; "features"; or "recordings" where there are too few of them
    kind: Literal["categorical", "numeric", "features", "count"]
    compared: str  # in words
    psi: float | None
    p_value: float | None  # corrected for the number of columns compared (Bonferroni): alpha holds for all together
    limit: float | None  # of PSI
    drifted: bool  # psi > limit and p_value < alpha
    text: str


def statistics(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe recordings for a later `compare`; JSON-able.

    rows: columns of the manifest, in its units; optional `score` (probability) and `features` (vector (K,), the mean
    MFCC of the recording). Missing, None and NaN are the same. Raises `ValueError` on unequal or NaN vectors.

    >>> statistics([{"label": 0, "sex": "F"}, {"label": 1}])["categorical"]["sex"]
    {'F': 1, 'unknown': 1}
    """
    rows = list(rows)
    return {
        "count": len(rows),
        "categorical": {name: _categories(rows, name) for name in CATEGORICAL},
        "numeric": {name: _distribution(*_numbers(rows, name)) for name in NUMERIC},
        "features": _moments(_vectors(rows)),
    }


def compare(
    reference: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], limits: DriftConfig | None = None
) -> list[Finding]:
    """Compare recordings with the `statistics` of others: one finding a column that either side knows.

    A column that only one side knows is drift in itself. With too few recordings on either side the only finding says
    so. The same input gives the same answer. Raises `ValueError` as `statistics` does.
    """
    rows, limits = list(rows), limits or DriftConfig()
    for whose, count in (("recordings", len(rows)), ("reference recordings", reference["count"])):
        if count < limits.min_recordings:
            text = f"too few {whose} to compare: {count}, at least {limits.min_recordings} are needed"
            return [Finding("recordings", "count", "number of recordings", None, None, None, False, text)]
    columns = [_categorical(reference, rows, name) for name in CATEGORICAL]
    columns += [_numeric(reference, rows, name) for name in NUMERIC]
    columns.append(_features(reference, rows))
    known = [column for column in columns if column is not None]
    return [_judge(column, len(known), limits) for column in known]


def psi(reference: Sequence[int], current: Sequence[int]) -> float:
    """Population stability index of two sets counted in the same bins: the sum of (q - p) * ln(q / p).

    >>> psi([10, 20, 30], [10, 20, 30])
    0.0
    """
    p, q = _shares(reference), _shares(current)  # (bins,)
    return float(np.sum((q - p) * np.log(q / p)))


@dataclass(frozen=True)
class _Column:
    name: str
    kind: Literal["categorical", "numeric", "features"]
    compared: str
    psi: float | None
    p_value: float  # of this column alone
    text: str


def _judge(column: _Column, compared: int, limits: DriftConfig) -> Finding:
    p_value = min(1.0, column.p_value * compared)
    large = column.psi is not None and column.psi > limits.psi
    drifted = large and p_value < limits.alpha
    chance = f", p {p_value:.2g}: chance would explain it" if large and not drifted else ""
    measured = "" if column.psi is None else f" (PSI {column.psi:.2g}, limit {limits.psi:g}{chance})"
    text = f"{column.name}: {column.text}{measured}"
    return Finding(column.name, column.kind, column.compared, column.psi, p_value, limits.psi, drifted, text)


def _categorical(reference: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], name: str) -> _Column | None:
    then = reference["categorical"].get(name) or {UNKNOWN: reference["count"]}
    now = _categories(rows, name)
    names = sorted(then.keys() | now.keys())
    if names == [UNKNOWN]:
        return None
    counts = [then.get(key, 0) for key in names], [now.get(key, 0) for key in names]
    p, q = (np.array(side) / sum(side) for side in counts)  # (categories,)
    most = int(np.argmax(np.abs(q - p) + 1e-9 * (q > p)))  # of equal changes the one that grew
    shown = f"{names[most]} {q[most]:.0%}, was {p[most]:.0%}"
    text = _known(1 - p[most], 1 - q[most]) if names[most] == UNKNOWN else shown
    return _Column(name, "categorical", "share of each value", psi(*counts), _chance(*counts), text)


def _numeric(reference: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], name: str) -> _Column | None:
    then = reference["numeric"].get(name) or _distribution(np.empty(0), reference["count"])
    values, missing = _numbers(rows, name)
    if not then["count"] and not len(values):
        return None
    counts = [*then["bins"], then["missing"]], [*_binned(values, then["edges"]), missing]
    was, now = then["count"] / reference["count"], len(values) / len(rows)
    if not then["count"] or not len(values) or abs(now - was) > 0.1:
        text = _known(was, now)
    elif "median" in then:
        text = f"median {np.median(values):.4g}, was {then['median']:.4g}"
    else:
        text = "known for too few recordings to tell a median"
    return _Column(name, "numeric", "distribution over the reference's deciles", psi(*counts), _chance(*counts), text)


def _features(reference: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> _Column | None:
    """PSI as the mean over coefficients of the squared standardised mean difference.

    That is the PSI of two normal distributions of one width: 0.25 is a difference of half a standard deviation. The
    test is Welch's for each coefficient, corrected for their number, whatever their correlation.
    """
    then = reference.get("features") or {"count": 0}
    vectors = _vectors(rows)  # (R, K)
    if not then["count"] and not len(vectors):
        return None
    if not (then["count"] and len(vectors)):
        counts = [then["count"], reference["count"] - then["count"]], [len(vectors), len(rows) - len(vectors)]
        text = _known(then["count"] / reference["count"], len(vectors) / len(rows))
        return _Column("features", "features", "whether there are any", psi(*counts), _chance(*counts), text)
    compared = "mean of each coefficient, by the reference's standard deviation"
    problem = ""
    if min(then["count"], len(vectors)) < GROUP:
        problem = "known for too few recordings to compare"
    elif vectors.shape[1] != len(then["mean"]):
        problem = f"{vectors.shape[1]} coefficients, were {len(then['mean'])}: not comparable"
    if problem:
        return _Column("features", "features", compared, None, 1.0, problem)
    mean, sd = np.array(then["mean"]), np.array(then["sd"])  # (K,)
    sd = np.maximum(sd, 1e-6 * np.maximum(1, np.abs(mean)))  # a constant coefficient
    difference = (vectors.mean(axis=0) - mean) / sd  # (K,)
    spread = np.maximum(vectors.std(axis=0, ddof=1), 1e-9 * sd)  # (K,)
    then_and_now = mean, sd, then["count"], mean + difference * sd, spread, len(vectors)
    welch = stats.ttest_ind_from_stats(*then_and_now, equal_var=False)
    most = int(np.argmax(np.abs(difference)))
    size = float(np.mean(difference**2))
    text = f"moved by {math.sqrt(size):.2g} sd (root mean square), most coefficient {most} by {difference[most]:+.2g}"
    return _Column("features", "features", compared, size, min(1.0, float(welch.pvalue.min()) * len(mean)), text)


def _known(was: float, now: float) -> str:
    return f"known for {was:.0%}, now for {now:.0%}"


def _chance(reference: Sequence[int], current: Sequence[int]) -> float:
    """How often chance alone gives two sets as unlike as these: chi-square over random tables with the same sums.

    Drawing tables instead of trusting the limiting distribution keeps the test right for bins of few recordings.
    """
    table = np.array([reference, current])  # (2, bins)
    table = table[:, table.any(axis=0)]
    if table.shape[1] < 2:
        return 1.0
    method = stats.MonteCarloMethod(n_resamples=RESAMPLES, rng=Random(0).stream("drift"))
    return float(stats.chi2_contingency(table, correction=False, method=method).pvalue)


def _shares(counts: Sequence[int]) -> np.ndarray:
    smooth = np.array(counts) + SMOOTHING  # (bins,)
    return smooth / smooth.sum()


def _categories(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, int]:
    return dict(sorted(Counter(_category(row.get(name)) for row in rows).items()))


def _category(value: Any) -> str:
    if value is None or value == "" or value != value:
        return UNKNOWN
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, int]:
    """The finite values of a column, and how many are missing."""
    values = np.array([math.nan if row.get(name) is None else float(row[name]) for row in rows])  # (R,)
    values = values[np.isfinite(values)]
    return values, len(rows) - len(values)


def _distribution(values: np.ndarray, missing: int) -> dict[str, Any]:
    bins = min(BINS, len(values) // GROUP)
    edges: list[float] = []
    if bins > 1:
        inner = np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf")
        single, times = np.unique(inner, return_counts=True)
        # A value that fills a whole bin gets one of its own: (the number just below it, the value].
        edges = sorted({*single.tolist(), *np.nextafter(single[times > 1], -math.inf).tolist()})
    described = {"count": len(values), "missing": missing, "edges": edges, "bins": _binned(values, edges)}
    if len(values) < GROUP:
        return described
    mean, sd, median = values.mean(), values.std(ddof=1), np.median(values)
    return described | {"mean": float(mean), "sd": float(sd), "median": float(median)}


def _binned(values: np.ndarray, edges: Sequence[float]) -> list[int]:
    """Counts in (-inf, edge], (edge, next edge], ... (last edge, inf)."""
    return np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1).tolist()


def _vectors(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    found = [np.asarray(row["features"], float) for row in rows if row.get("features") is not None]
    if {vector.ndim for vector in found} - {1} or len({len(vector) for vector in found}) > 1:
        raise ValueError("features: vectors of one length are needed")
    vectors = np.stack(found) if found else np.empty((0, 0))  # (R, K)
    if not np.isfinite(vectors).all():
        raise ValueError("features: a coefficient is not a number")
    return vectors


def _moments(vectors: np.ndarray) -> dict[str, Any]:
    if len(vectors) < GROUP:
        return {"count": len(vectors)}
    return {"count": len(vectors), "mean": vectors.mean(axis=0).tolist(), "sd": vectors.std(axis=0, ddof=1).tolist()}
