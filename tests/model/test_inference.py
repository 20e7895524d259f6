"""One recording's answer is its own: neighbours, batch size and position do not matter."""

import json

import pytest
import torch
from safetensors.torch import save_file

from spira_train import inference
from spira_train.config import FeaturesConfig
from spira_train.model import MODELS, build


@pytest.fixture(params=MODELS)
def predictor(request, tmp_path):
    torch.manual_seed(1)
    network = {"name": request.param, "frames": 401, "coefficients": 40, "dropout": 0.1}
    description = {
        "network": network,
        "features": FeaturesConfig().model_dump(),
        "decision": {"threshold": 0.5, "band": 0.05},
    }
    (tmp_path / "model.json").write_text(json.dumps(description))
    save_file(build(**network).state_dict(), tmp_path / "model.safetensors")
    return inference.load(tmp_path)


def test_answers_do_not_depend_on_neighbours(predictor):
    torch.manual_seed(2)
    lengths = (9_000, 64_000, 100_000, 70_001, 160_000)
    quiet = [torch.randn(n) * 0.02 for n in lengths]
    alone = [predictor.predict([w])[0].probability for w in quiet]
    crowd = [torch.randn(90_000) * 0.9, *quiet, torch.zeros(64_000), *[torch.randn(128_000) * 0.5 for _ in range(6)]]
    together = predictor.predict(crowd)[1:6]
    backwards = predictor.predict(crowd[::-1])[::-1][1:6]
    for one, two, three in zip(alone, together, backwards, strict=True):
        assert abs(one - two.probability) <= 1e-6
        assert abs(one - three.probability) <= 1e-6


def test_probability_is_the_mean_over_windows(predictor):
    (answer,) = predictor.predict([torch.randn(100_000) * 0.1])
    assert len(answer.windows) == 4
    assert answer.probability == pytest.approx(sum(answer.windows) / 4, abs=1e-12)


@pytest.mark.parametrize(
    ("probability", "diagnosis"),
    [(0.9, "positive"), (0.551, "positive"), (0.54, "inconclusive"), (0.46, "inconclusive"), (0.449, "negative")],
)
def test_diagnosis_has_a_band(predictor, probability, diagnosis):
    assert predictor.diagnosis(probability) == diagnosis


def test_weights_of_another_network_are_refused(predictor):
    with pytest.raises(RuntimeError, match="Missing key"):
        inference.Predictor(predictor.description, {})
