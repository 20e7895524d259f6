"""Metrics against hand-counted values; intervals cover."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spira_train.metrics import measure

LABELS = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
SCORES = [0.9, 0.8, 0.7, 0.2, 0.6, 0.4, 0.3, 0.25, 0.1, 0.05]


def test_hand_counted():
    found = measure(LABELS, SCORES, 0.5, 200, np.random.default_rng(0))
    assert found["confusion"] == [[5, 1], [1, 3]]
    assert found["accuracy"]["value"] == 0.8
    assert found["sensitivity"]["value"] == 0.75
    assert found["specificity"]["value"] == pytest.approx(5 / 6)
    assert found["f1"]["value"] == 0.75
    assert found["auc"]["value"] == pytest.approx((6 + 6 + 6 + 2) / 24)


def test_wilson_interval_of_99_in_108():
    labels = [1] * 54 + [0] * 54
    scores = [0.9] * 47 + [0.1] * 7 + [0.1] * 52 + [0.9] * 2  # SPIRA v1's headline: 99 of 108
    accuracy = measure(labels, scores, 0.5, 200, np.random.default_rng(0))["accuracy"]
    assert (round(accuracy["low"], 3), round(accuracy["high"], 3)) == (0.849, 0.956)


@given(st.lists(st.floats(0, 1), min_size=8, max_size=40), st.integers(2, 6))
def test_everything_is_a_proportion_inside_its_interval(scores, patients):
    labels = [1] * patients + [0] * (len(scores) - patients)
    found = measure(labels, scores, 0.5, 100, np.random.default_rng(0))
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
    fast = measure(y.tolist(), p.tolist(), 0.5, 1500, rng)["auc"]
    assert fast["low"] == pytest.approx(np.quantile(slow, 0.025), abs=0.02)
    assert fast["high"] == pytest.approx(np.quantile(slow, 0.975), abs=0.02)


@pytest.mark.parametrize(("labels", "scores"), [([0, 1], [0.1, float("nan")]), ([1, 1], [0.1, 0.2]), ([], [])])
def test_what_cannot_be_measured_is_an_error(labels, scores):
    with pytest.raises(ValueError, match=r"not a number|both classes"):
        measure(labels, scores, 0.5, 100, np.random.default_rng(0))
