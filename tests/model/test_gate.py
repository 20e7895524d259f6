"""The gate is fail-closed, and the ward detector is refused."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spira_train import config, gate, validate
from spira_train.outcome import BadInput

PLAN = gate.read(config.CONFIG_DIR / "gate.yaml")
CONFIG = config.resolve(config.preset_files("fast"), {"partition": "2026-11-05"})
PER_CLASS = {"controls": 20, "patients": 20}
ROWS = [{"label": label} for label in [0] * 20 + [1] * 20]


def probes(clean, noisy):
    return validate.probe(ROWS, {"clean": clean, "noisy": noisy}, 0.5, CONFIG)


def honest():
    scores = np.concatenate([np.linspace(0.02, 0.4, 20), np.linspace(0.6, 0.98, 20)]).tolist()
    return probes(scores, scores)


def broken(metrics, per_class=PER_CLASS):
    return [check.text for check in gate.judge(PLAN, metrics, per_class) if not check.passed]


def test_honest_model_is_blessed():
    assert broken(honest()) == []


def test_ward_detector_is_refused():
    """98 % clean, chance once controls stand in a ward too: the lesson of SPIRA v1."""
    clean = [0.05] * 20 + [0.95] * 20
    in_ward = [0.95] * 40
    reasons = broken(probes(clean, in_ward))
    assert any(r.startswith("ward_noise_controls accuracy_drop is 0.500") for r in reasons)
    assert any(r.startswith("ward_noise accuracy is 0.500") for r in reasons)


def test_noise_that_hides_patients_is_refused():
    reasons = broken(probes([0.05] * 20 + [0.95] * 20, [0.05] * 40))
    assert any(r.startswith("ward_noise_patients accuracy_drop") for r in reasons)


@given(
    st.sampled_from([(limit.probe, limit.metric) for limit in PLAN.limits]), st.sampled_from(["absent", "nan", "inf"])
)
def test_missing_or_odd_metric_is_a_refusal(which, how):
    metrics = copy.deepcopy(honest())
    probe, metric = which
    if how == "absent":
        del metrics[probe][metric]
    else:
        metrics[probe][metric] = dict.fromkeys(("value", "low", "high"), float(how))
    assert any(f"{probe} {metric}" in text for text in broken(metrics))


def test_no_metrics_at_all_is_a_refusal():
    assert len(broken({})) == len(PLAN.limits)


def test_small_test_set_is_a_refusal():
    assert broken(honest(), {"controls": 20, "patients": 7}) == [
        "the test set holds 7 patients, at least 8 are asked for"
    ]


def test_nan_weights_leave_no_metrics():
    assert probes([float("nan")] * 40, [float("nan")] * 40) == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("limits: [", "not valid YAML"),
        ("min_per_class: 8\nnoise: {}\nlimits: []", "limits"),
        ("min_per_class: 8\nnoise: {}\nlimits: [{probe: clean, metric: auc}]", "needs min or max"),
        ("min_per_class: 8\nnoise: {}\nlimits: [{probe: clean, metric: auc, mim: 1}]", "extra"),
    ],
)
def test_broken_gate_file_is_named(tmp_path, content, words):
    file = tmp_path / "gate.yaml"
    file.write_text(content)
    with pytest.raises(BadInput, match=words):
        gate.read(file)


def test_missing_gate_file_is_named(tmp_path):
    with pytest.raises(BadInput, match="without a gate nothing can be blessed"):
        gate.read(tmp_path / "gate.yaml")
