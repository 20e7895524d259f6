"""From a network's answer to a probability that can be taken at its word, and to the band where it says neither.

Both are fitted on the validation split when training ends, travel with the weights, and are judged on the test set.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.metrics import log_loss

from spira_train.inference import EDGE

Numbers = Sequence[float] | NDArray[Any]
COLDEST, HOTTEST = 0.2, 20.0  # temperatures beyond are the optimiser's escape from a validation split without errors


def log_odds(probabilities: Numbers) -> NDArray[np.float64]:
    """ln p / (1 - p) of probabilities (R,); 0 and 1 are taken as `EDGE` from where they are."""
    return np.asarray(logit(np.clip(probabilities, EDGE, 1 - EDGE)))


def temperature(labels: Numbers, probabilities: Numbers) -> float:
    """The temperature that makes `probabilities` (R,) most likely for `labels` (R,) (Guo et al., 2017).

    Above 1 where the network is too sure of itself.
    """
    y, z = np.asarray(labels, int), log_odds(probabilities)

    def loss(log_t: float) -> float:
        return float(log_loss(y, expit(z / np.exp(log_t)), labels=[0, 1]))

    found = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    return float(np.exp(found.x))


def calibrated(probabilities: Numbers, temperature: float) -> NDArray[np.float64]:
    """`probabilities` (R,) with their log-odds divided by `temperature`; 0.5 stays where it is."""
    return np.asarray(expit(log_odds(probabilities) / temperature))


def band(
    labels: Numbers,
    probabilities: Numbers,
    threshold: float,
    *,
    least: float,
    most: float,
    accuracy: float,
) -> float:
    """Half width of the inconclusive band: the smallest from `least` to `most` outside of which `accuracy` is reached.

    labels, probabilities: (R,), calibrated. Where no width reaches it, `most`.
    """
    y, p = np.asarray(labels, int), np.asarray(probabilities, float)
    right, distance = (p > threshold) == (y == 1), np.abs(p - threshold)
    for width in np.arange(least, most, 0.01):
        outside = distance >= width
        if not outside.any() or right[outside].mean() >= accuracy:
            return round(float(width), 4)
    return most
