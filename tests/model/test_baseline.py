"""What can be said without listening: by age and sex, by loudness and length, by the setting."""

import numpy as np
import pytest

from spira_train import baseline

RNG = np.random.default_rng(0)


def rows(count=200, **by_label):
    """Recordings whose named columns follow the label; the others say nothing."""
    made = []
    for number in range(count):
        label = number % 2
        facts = {"sex": RNG.choice(["F", "M"]), "age": int(RNG.integers(20, 80)), "site": "a", "device": "d"}
        facts |= {"rms_dbfs": float(RNG.normal(-20, 3)), "peak": 0.5, "seconds": float(RNG.normal(8, 1))}
        facts |= {"bandwidth_hz": 7000.0, "source_rate": 48000, "source_channels": 1, "label": label}
        made.append(facts | {name: values[label] for name, values in by_label.items()})
    return made


def accuracy(name, **by_label):
    train, test = rows(**by_label), rows(**by_label)
    answers = baseline.answers(name, train, test)
    return np.mean([(p > 0.5) == row["label"] for p, row in zip(answers, test, strict=True)])


@pytest.mark.parametrize(
    ("name", "by_label"),
    [
        ("age_sex", {"age": (30, 60)}),
        ("age_sex", {"sex": ("F", "M")}),
        ("age_sex", {"age": (40, None)}),  # that it is missing is what betrays
        ("loudness_length", {"seconds": (7.0, 9.0)}),
        ("loudness_length", {"rms_dbfs": (-30.0, -20.0)}),
        ("setting", {"site": ("home", "ward")}),
        ("setting", {"source_rate": (8000, 48000)}),
        ("setting", {"device": (None, "browser")}),
    ],
)
def test_each_hears_its_own_circumstance_and_no_other(name, by_label):
    assert accuracy(name, **by_label) > 0.95
    for other in baseline.BASELINES.keys() - {name}:
        assert accuracy(other, **by_label) < 0.65


def test_nothing_known_is_one_answer_for_all():
    train = [{"label": n % 2} for n in range(20)]
    assert len(set(baseline.answers("age_sex", train, train))) == 1


def test_a_value_that_training_never_saw_is_answered():
    (answer,) = baseline.answers("setting", rows(site=("a", "b")), rows(1, site=("elsewhere", "elsewhere")))
    assert 0 < answer < 1
