"""Drift is told where there is some, by its name, and hardly ever where there is none."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spira_train.config import DriftConfig
from spira_train.drift import CATEGORICAL, NUMERIC, compare, psi, statistics

COEFFICIENTS = 12


def recordings(seed: int, count: int) -> list[dict]:
    """Recordings of one law: correlated features, rare devices, a band that ends at 4 kHz, no cause for controls."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label = int(rng.random() < 0.5)
        common = rng.standard_normal()
        rows.append(
            {
                "label": label,
                "sex": str(rng.choice(["F", "M"])),
                "site": str(rng.choice(["ward", "home", "clinic"], p=[0.6, 0.35, 0.05])),
                "device": f"phone {int(rng.integers(25))}",
                "cause": str(rng.choice(["covid", "flu"])) if label else None,
                "source_rate": int(rng.choice([8000, 48000], p=[0.7, 0.3])),
                "source_channels": 1,
                "age": int(rng.normal(55, 15)),
                "seconds": float(rng.lognormal(1.5, 0.3)),
                "rms_dbfs": float(rng.normal(-30, 6)),
                "snr_db": float(rng.normal(25, 6)),
                "bandwidth_hz": float(min(4000, rng.normal(4000, 400))),
                "score": float(rng.beta(0.6, 0.6)),
                "features": 0.8 * common + 0.6 * rng.standard_normal(COEFFICIENTS),
            }
        )
    return rows


REFERENCE = json.loads(json.dumps(statistics(recordings(0, 300))))


def drifted(rows: list[dict], reference: dict = REFERENCE, **limits: float) -> set[str]:
    return {finding.name for finding in compare(reference, rows, DriftConfig(**limits)) if finding.drifted}


def shifted(change, seed: int = 1, count: int = 80) -> set[str]:
    return drifted([row | change(row) for row in recordings(seed, count)])


@pytest.mark.parametrize("count", [10, 25, 150])
def test_recordings_of_the_same_law_hardly_ever_alarm(count):
    alarms = sum(bool(drifted(recordings(seed, count))) for seed in range(1, 41))
    assert alarms <= 3  # of 40 at alpha 0.01: more would happen once in 1,500 times


def test_psi_alone_would_cry_wolf():
    large = [f for f in compare(REFERENCE, recordings(3, 25)) if f.psi > 0.25]
    assert large
    assert all("chance would explain it" in finding.text for finding in large)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("label", lambda row: {"label": int(row["seconds"] > 2)}),
        ("sex", lambda row: {"sex": "M"}),
        ("site", lambda row: {"site": "another ward"}),
        ("device", lambda row: {"device": "phone 1"}),
        ("cause", lambda row: {"cause": "flu"}),
        ("source_rate", lambda row: {"source_rate": 44100}),
        ("source_channels", lambda row: {"source_channels": 2}),
        ("age", lambda row: {"age": row["age"] - 20}),
        ("seconds", lambda row: {"seconds": row["seconds"] * 2}),
        ("rms_dbfs", lambda row: {"rms_dbfs": row["rms_dbfs"] + 8}),
        ("snr_db", lambda row: {"snr_db": row["snr_db"] - 10}),
        ("bandwidth_hz", lambda row: {"bandwidth_hz": 7800.0}),
        ("score", lambda row: {"score": row["score"] ** 4}),
        ("features", lambda row: {"features": row["features"] + 1}),
    ],
)
def test_a_shift_alarms_by_its_name(name, change):
    assert shifted(change) == {name}


def test_what_is_said_names_both_sides():
    change = {"bandwidth_hz": 7800.0, "site": "telegram", "sex": None, "age": None}
    text = {f.name: f.text for f in compare(REFERENCE, [row | change for row in recordings(1, 80)])}
    assert text["bandwidth_hz"].startswith("bandwidth_hz: median 7800, was 3993 (PSI ")
    assert text["bandwidth_hz"].endswith(", limit 0.25)")
    assert text["site"].startswith("site: telegram 100%, was 0% (PSI ")
    assert text["sex"].startswith("sex: known for 100%, now for 0% (PSI ")
    assert text["age"].startswith("age: known for 100%, now for 0% (PSI ")


def test_a_spread_that_grows_is_drift_though_the_median_stays():
    assert shifted(lambda row: {"snr_db": 25 + 4 * (row["snr_db"] - 25)}) == {"snr_db"}


@pytest.mark.parametrize("later", [3900.0, 4100.0])
def test_leaving_the_value_that_nearly_all_had_is_drift_either_way(later):
    rows = [row | {"bandwidth_hz": 4000.0} for row in recordings(0, 100)]
    assert drifted([row | {"bandwidth_hz": later} for row in rows], statistics(rows)) == {"bandwidth_hz"}


def test_the_p_value_is_corrected_for_the_number_of_columns():
    sexes = [{"sex": "F"}] * 50 + [{"sex": "M"}] * 50, [{"sex": "F"}] * 17 + [{"sex": "M"}] * 3
    more = [[row | {"label": 0, "age": 50, "site": "ward"} for row in side] for side in sexes]
    alone, among = (
        next(f.p_value for f in compare(statistics(then), now) if f.name == "sex") for then, now in (sexes, more)
    )
    assert among == pytest.approx(4 * alone)


def test_a_moderate_shift_is_within_the_limit_however_sure_it_is():
    rows = [row | {"score": min(1.0, row["score"] + 0.03)} for row in recordings(0, 3000)]
    score = next(f for f in compare(statistics(recordings(0, 3000)), rows) if f.name == "score")
    assert score.p_value < 0.01
    assert 0 < score.psi < 0.25
    assert not score.drifted
    assert "score" in drifted(rows, statistics(recordings(0, 3000)), psi=score.psi / 2)


def test_limits_are_limits():
    rows = [row | {"site": "another ward"} for row in recordings(1, 80)]
    size = next(f.psi for f in compare(REFERENCE, rows) if f.name == "site")
    assert drifted(rows, psi=size - 0.01) == {"site"}
    assert drifted(rows, psi=size + 0.01) == set()


@pytest.mark.parametrize("count", [0, 1, 9])
def test_too_few_are_not_compared(count):
    for findings in (compare(REFERENCE, recordings(1, count)), compare(statistics(recordings(1, count)), [{}] * 50)):
        (finding,) = findings
        assert (finding.name, finding.kind, finding.drifted, finding.psi) == ("recordings", "count", False, None)
        assert f"{count}, at least 10 are needed" in finding.text


def test_ten_recordings_are_enough_for_a_change_of_all():
    assert shifted(lambda row: {"site": "another ward"}, count=10) == {"site"}


@pytest.mark.parametrize("gone", [{"score": None}, {"features": None}, {"sex": ""}, {"age": math.nan}])
def test_a_column_that_one_side_lacks_is_drift_in_itself(gone):
    (name,) = gone
    without = [row | gone for row in recordings(1, 80)]
    assert drifted(without) == {name}
    assert drifted(recordings(1, 80), statistics(without)) == {name}
    assert name not in {f.name for f in compare(statistics(without), without)}


def test_a_column_unknown_to_an_older_reference_counts_as_missing_there():
    older = json.loads(json.dumps(REFERENCE))
    del older["numeric"]["snr_db"], older["categorical"]["site"], older["features"]
    assert drifted(recordings(1, 80), older) == {"snr_db", "site", "features"}


def test_only_columns_that_a_side_knows_are_compared():
    rows = [{"label": index % 2, "seconds": 1.0 + index} for index in range(40)]
    assert [f.name for f in compare(statistics(rows), rows)] == ["label", "seconds"]


def test_features_of_another_length_or_too_few_are_not_compared():
    other = [row | {"features": row["features"][:5]} for row in recordings(1, 80)]
    few = [row | ({"features": None} if index > 3 else {}) for index, row in enumerate(recordings(1, 80))]
    for rows, words in ((other, "5 coefficients, were 12: not comparable"), (few, "too few recordings to compare")):
        finding = next(f for f in compare(REFERENCE, rows) if f.name == "features")
        assert words in finding.text
        assert not finding.drifted


@pytest.mark.parametrize("second", [[1.0], [[1.0, 2.0]], [1.0, math.nan]])
def test_broken_features_are_an_error(second):
    with pytest.raises(ValueError, match="features"):
        statistics([{"features": [1.0, 2.0]}, {"features": second}])


@given(st.lists(st.integers(0, 500), min_size=1, max_size=20), st.randoms())
def test_psi_is_zero_for_itself_symmetric_and_never_negative(counts, random):
    others = random.sample(counts, len(counts))
    assert psi(counts, counts) == 0
    assert psi(counts, others) == pytest.approx(psi(others, counts))
    assert 0 <= psi(counts, others) < math.inf


def test_psi_by_hand():
    # (0.25 - 0.5) ln(0.25 / 0.5) + (0.75 - 0.5) ln(0.75 / 0.5), but for the half recordings added
    assert psi([5000, 5000], [2500, 7500]) == pytest.approx(0.25 * math.log(2) + 0.25 * math.log(1.5), abs=1e-3)


VALUE = st.one_of(st.none(), st.just(math.nan), st.integers(0, 5), st.floats(-1e6, 1e6))
ROWS = st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys((*CATEGORICAL, *NUMERIC), VALUE)), max_size=60)


@given(ROWS)
@settings(max_examples=40, deadline=None)
def test_any_set_is_like_itself_counts_all_and_survives_json(rows):
    text = json.dumps(statistics(rows), allow_nan=False)
    reference = json.loads(text)
    assert reference == statistics(rows)
    assert all(sum(counts.values()) == len(rows) for counts in reference["categorical"].values())
    for column in reference["numeric"].values():
        assert sum(column["bins"]) + column["missing"] == len(rows)
        assert len(column["bins"]) == len(column["edges"]) + 1
        assert column["edges"] == sorted(set(column["edges"]))
    for finding in compare(reference, rows):
        assert finding.psi in (0, None)
        assert not finding.drifted


def test_the_same_input_gives_the_same_answer():
    assert compare(REFERENCE, recordings(1, 40)) == compare(REFERENCE, recordings(1, 40))


def test_statistics_tell_of_no_person():
    column = statistics([{"age": age, "score": age / 100, "features": [age]} for age in (31, 47, 58, 99)])
    assert column["numeric"]["age"] == {"count": 4, "missing": 0, "edges": [], "bins": [4]}
    assert column["features"] == {"count": 4}
    ages = [*range(40, 90), 17, 103]
    text = json.dumps(statistics([{"age": age, "subject": f"s{age}"} for age in ages]))
    assert not {"17", "103", "17.0", "103.0"} & set(text.replace(",", " ").replace("]", " ").replace("[", " ").split())
    assert "s40" not in text
