"""A trained model at work: recordings in, probabilities out. Validation and the handler both go through here."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from spira_train.features import FeatureExtractor
from spira_train.model import build

# Windows in one pass: bounds memory whatever is asked.
CHUNK = 32
EDGE = 1e-6  # a probability nearer to 0 or 1 counts as this near


@dataclass(frozen=True)
class Prediction:
    """probability: mean over the windows of P(insufficiency), SPIRA v1's rule; windows: one value a window.

    features: mean MFCC over windows and frames, (n_mfcc,), as `featurise.means` has them of what was trained on.
    """

    probability: float
    windows: list[float]
    features: list[float]


class Predictor:
    """The network with its features and its decision rule, as `train` left them in a folder."""

    def __init__(self, description: dict[str, Any], weights: dict[str, Tensor]):
        self.description = description
        features = dict(description["features"])
        self.size = round(features.pop("window_seconds") * features["sample_rate"])
        self.step = round(features.pop("step_seconds") * features["sample_rate"])
        self.extractor = FeatureExtractor(**features).eval()
        self.network = build(**description["network"]).eval()
        self.network.load_state_dict(weights, strict=True)  # a mismatch must never pass silently

    @torch.inference_mode()
    def predict(self, waveforms: Sequence[Tensor]) -> list[Prediction]:
        """waveforms: each (T,) float32 in [-1, 1] at the model's rate -> one prediction each.

        A recording's answer does not depend on its neighbours.
        """
        each = [self.extractor.windows(w, self.size, self.step) for w in waveforms]  # (W, 1, frames, n_mfcc)
        logits = torch.cat([self.network(part) for part in torch.cat(each).split(CHUNK)])  # (sum W,)
        answers = torch.sigmoid(logits.double()).split([len(features) for features in each])
        found = zip(answers, each, strict=True)
        return [Prediction(float(a.mean()), a.tolist(), f.mean((0, 1, 2)).tolist()) for a, f in found]

    def calibrated(self, waveforms: Sequence[NDArray[np.float32]]) -> list[float]:
        """The calibrated probability of each of `waveforms`, (T,) as `predict` takes them, but numpy's."""
        found = self.predict([torch.from_numpy(np.ascontiguousarray(wave)) for wave in waveforms])
        return [self.calibrate(each.probability) for each in found]

    def calibrate(self, probability: float) -> float:
        """The probability with its log-odds divided by the temperature that was fitted on the validation split."""
        temperature = self.description.get("calibration", {}).get("temperature", 1.0)
        inside = min(max(probability, EDGE), 1 - EDGE) if math.isfinite(probability) else math.nan
        return 1 / (1 + math.exp(-math.log(inside / (1 - inside)) / temperature))

    def diagnosis(self, probability: float) -> str:
        """`positive`, `negative`, or `inconclusive` in the band around the threshold; probability: a calibrated one."""
        decision = self.description["decision"]
        if abs(probability - decision["threshold"]) < decision["band"]:
            return "inconclusive"
        return "positive" if probability > decision["threshold"] else "negative"


def load(folder: Path) -> Predictor:
    """The predictor in `folder` (`model.safetensors` beside `model.json`)."""
    description = json.loads((folder / "model.json").read_text())
    return Predictor(description, load_file(folder / "model.safetensors"))
