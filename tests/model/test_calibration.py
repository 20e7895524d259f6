"""A temperature that undoes boasting, a band that is as narrow as it may be, and one formula on both sides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spira_train import calibration
from spira_train.inference import Predictor

RNG = np.random.default_rng(0)
TRUTH = RNG.uniform(0.02, 0.98, 3000)
LABELS = (RNG.uniform(0, 1, 3000) < TRUTH).astype(int)


@pytest.mark.parametrize("boast", [0.5, 1.0, 3.0])
def test_temperature_undoes_what_was_done(boast):
    told = calibration.calibrated(TRUTH, 1 / boast)
    assert calibration.temperature(LABELS, told) == pytest.approx(boast, rel=0.1)


def test_a_split_without_errors_does_not_freeze_the_answers():
    assert calibration.temperature([0, 1] * 10, [0.1, 0.9] * 10) == pytest.approx(calibration.COLDEST, rel=0.01)


def test_the_band_is_the_narrowest_that_suffices():
    labels = [0] * 50 + [1] * 50
    p = [0.1] * 45 + [0.58] * 5 + [0.9] * 45 + [0.42] * 5  # all errors lie within 0.08 of the threshold
    choose = {"least": 0.05, "most": 0.25}
    assert calibration.band(labels, p, 0.5, **choose, accuracy=0.85) == 0.05
    assert calibration.band(labels, p, 0.5, **choose, accuracy=0.99) == pytest.approx(0.09)
    wrong = [0.9] * 50 + [0.1] * 50
    assert calibration.band(labels, wrong, 0.5, **choose, accuracy=0.99) == 0.25


@given(st.floats(0, 1), st.floats(0.2, 20))
def test_the_server_calibrates_as_training_did(p, temperature):
    predictor = object.__new__(Predictor)
    predictor.description = {"calibration": {"temperature": temperature}}
    ours = float(calibration.calibrated([p], temperature)[0])
    assert predictor.calibrate(p) == pytest.approx(ours, abs=1e-9)


def test_half_stays_half_and_nan_stays_nan():
    predictor = object.__new__(Predictor)
    predictor.description = {"calibration": {"temperature": 3.0}}
    assert predictor.calibrate(0.5) == 0.5
    assert np.isnan(predictor.calibrate(float("nan")))
    predictor.description = {}  # an archive from before calibration
    assert predictor.calibrate(0.3) == pytest.approx(0.3)
