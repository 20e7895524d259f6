"""Metrics against hand-counted values; intervals cover; two recordings of one person are not two pieces of evidence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from spira_train.metrics import Sample, calibration, gain, mcnemar, measure, proportion, shift

LABELS = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
SCORES = [0.9, 0.8, 0.7, 0.2, 0.6, 0.4, 0.3, 0.25, 0.1, 0.05]


def sample(labels, subjects=None, draws=200):
    return Sample.of(labels, range(len(labels)) if subjects is None else subjects, draws, np.random.default_rng(0))


def test_hand_counted():
    found = measure(sample(LABELS), SCORES, 0.5)
    assert found["confusion"] == [[5, 1], [1, 3]]
    assert found["accuracy"]["value"] == 0.8
    assert found["sensitivity"]["value"] == 0.75
    assert found["specificity"]["value"] == pytest.approx(5 / 6)
    assert found["f1"]["value"] == 0.75
    assert found["auc"]["value"] == pytest.approx((6 + 6 + 6 + 2) / 24)


def test_wilson_interval_of_99_in_108():
    labels = [1] * 54 + [0] * 54
    scores = [0.9] * 47 + [0.1] * 7 + [0.1] * 52 + [0.9] * 2  # SPIRA v1's headline: 99 of 108
    accuracy = measure(sample(labels), scores, 0.5)["accuracy"]
    assert (round(accuracy["low"], 3), round(accuracy["high"], 3)) == (0.849, 0.956)


@given(st.integers(0, 60), st.integers(1, 60))
def test_wilson_agrees_with_scipy(hits, total):
    hits = min(hits, total)
    ours = proportion(np.arange(total) < hits, np.arange(total))
    theirs = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert (ours["low"], ours["high"]) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=8, max_size=40), st.integers(2, 6))
def test_everything_is_a_proportion_inside_its_interval(scores, patients):
    labels = [1] * patients + [0] * (len(scores) - patients)
    found = measure(sample(labels), scores, 0.5)
    for name in ("accuracy", "sensitivity", "specificity", "f1", "auc"):
        metric = found[name]
        assert 0 <= metric["low"] <= metric["high"] <= 1
        assert 0 <= metric["value"] <= 1


def test_bootstrap_agrees_with_drawing_one_by_one():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    y = np.array([0] * 30 + [1] * 30)
    p = np.concatenate([rng.normal(0, 1, 30), rng.normal(1, 1, 30)])
    slow = [
        roc_auc_score(y, p[np.concatenate([rng.integers(0, 30, 30), rng.integers(30, 60, 30)])]) for _ in range(1500)
    ]
    fast = measure(sample(y.tolist(), draws=1500), p.tolist(), 0.5)["auc"]
    assert fast["low"] == pytest.approx(np.quantile(slow, 0.025), abs=0.02)
    assert fast["high"] == pytest.approx(np.quantile(slow, 0.975), abs=0.02)


def test_the_same_people_twice_prove_no_more():
    rng = np.random.default_rng(3)
    labels = [0] * 20 + [1] * 20
    scores = np.concatenate([rng.uniform(0, 0.7, 20), rng.uniform(0.3, 1, 20)]).tolist()
    once = measure(sample(labels, draws=2000), scores, 0.5)
    twice = measure(sample(labels * 2, list(range(40)) * 2, draws=2000), scores * 2, 0.5)
    for name in ("auc", "accuracy", "f1"):
        width = {which: found[name]["high"] - found[name]["low"] for which, found in (("1", once), ("2", twice))}
        assert width["2"] == pytest.approx(width["1"], rel=0.1), name


@pytest.mark.parametrize(("labels", "scores"), [([0, 1], [0.1, float("nan")]), ([1, 1], [0.1, 0.2]), ([], [])])
def test_what_cannot_be_measured_is_an_error(labels, scores):
    with pytest.raises(ValueError, match=r"not a number|both classes"):
        measure(sample(labels), scores, 0.5)


def test_gain_and_shift_are_paired():
    labels = [0] * 25 + [1] * 25
    rng = np.random.default_rng(4)
    scores = np.concatenate([rng.uniform(0, 0.6, 25), rng.uniform(0.4, 1, 25)])
    same = gain(sample(labels), scores, scores)
    assert (same["low"], same["value"], same["high"]) == (0, 0, 0)
    moved = shift(sample(labels), scores, scores + 0.1)
    assert (moved["low"], moved["high"]) == pytest.approx((0.1, 0.1))
    chance = rng.uniform(0, 1, 50)
    assert gain(sample(labels), scores, chance)["low"] > 0 > gain(sample(labels), chance, scores)["high"]


def test_mcnemar_by_hand():
    ours = np.array([True] * 9 + [False] * 1 + [True] * 30)
    theirs = np.array([False] * 9 + [True] * 1 + [True] * 30)
    assert mcnemar(ours, theirs) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(ours, ours) == 1.0


def test_calibration_of_the_honest_and_of_the_boastful():
    rng = np.random.default_rng(5)
    p = rng.uniform(0, 1, 4000)
    labels = (rng.uniform(0, 1, 4000) < p).astype(int)
    honest = calibration(sample(labels.tolist(), draws=100), p, 0.5)
    assert honest["ece"]["value"] < 0.03
    assert abs(honest["overconfidence"]["value"]) < 0.03
    assert sum(one["recordings"] for one in honest["reliability"]) == 4000
    boastful = calibration(sample(labels.tolist(), draws=100), (p > 0.5).astype(float), 0.5)
    assert boastful["overconfidence"]["value"] == pytest.approx(0.25, abs=0.03)  # says 1.0, is right in 3 of 4
    assert boastful["ece"]["value"] == pytest.approx(0.25, abs=0.03)
