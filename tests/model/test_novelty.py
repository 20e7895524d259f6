"""A recording unlike the training data is named as such; those like it are not."""

import numpy as np
import pytest

from spira_train import drift, novelty

USUAL = {"seconds": 8.0, "rms_dbfs": -25.0, "snr_db": 20.0, "bandwidth_hz": 7900.0}


@pytest.fixture(scope="module")
def trained_on() -> list[dict]:
    rng = np.random.default_rng(5)
    spread = {"seconds": 2.0, "rms_dbfs": 4.0, "snr_db": 5.0, "bandwidth_hz": 0.0}
    rows = [{name: USUAL[name] + spread[name] * rng.standard_normal() for name in USUAL} for _ in range(2_000)]
    return [row | {"features": rng.normal(3, 2, 40)} for row in rows]


def test_recordings_of_the_same_kind_are_seldom_warned_about(trained_on: list[dict]) -> None:
    reference, later = drift.statistics(trained_on[:1_000]), trained_on[1_000:]
    warned = [row for row in later if novelty.warnings(reference, row, row["features"])]
    assert len(warned) <= 10


@pytest.mark.parametrize(
    ("fact", "value", "warning"),
    [
        ("seconds", 30.0, "unfamiliar_length"),
        ("rms_dbfs", -55.0, "unfamiliar_level"),
        ("snr_db", -5.0, "unfamiliar_noise"),
        ("bandwidth_hz", 3400.0, "unfamiliar_bandwidth"),  # a telephone, where training had one device
    ],
)
def test_each_fact_has_its_warning(trained_on: list[dict], fact: str, value: float, warning: str) -> None:
    reference = drift.statistics(trained_on)
    assert novelty.warnings(reference, USUAL, [3.0] * 40) == []
    assert novelty.warnings(reference, USUAL | {fact: value}, [3.0] * 40) == [warning]
    assert novelty.warnings(reference, USUAL, [10.0] * 40) == ["unfamiliar_sound"]


def test_where_little_is_known_nothing_is_judged(trained_on: list[dict]) -> None:
    odd = USUAL | {"seconds": 90.0}
    for reference in ({}, drift.statistics([]), drift.statistics(trained_on[:4])):
        assert novelty.warnings(reference, odd, [99.0] * 40) == []
    assert novelty.warnings(drift.statistics(trained_on), USUAL, [99.0] * 20) == []  # other coefficients
