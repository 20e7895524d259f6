"""Whether one recording is unlike all that a model was trained on: its answer is then a guess, and says so.

It reads what `drift.statistics` kept of the training data, which holds no value of any one person, and needs neither
scipy nor the recordings: the handler carries it in every archive.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Facts of `audio.Audio` that a sender can do something about -> the warning that names them.
FACTS = {
    "seconds": "unfamiliar_length",
    "rms_dbfs": "unfamiliar_level",
    "snr_db": "unfamiliar_noise",
    "bandwidth_hz": "unfamiliar_bandwidth",
}
SOUND = "unfamiliar_sound"
# Fences stand one range of the inner eight deciles outside of them: 3.8 standard deviations from a normal's mean.
REACH = 1.0
LEAST = (
    0.1  # of the median: a fact that hardly varied in training, such as the bandwidth of one device, may vary this much
)
FAR = 2.5  # standard deviations, root mean square over coefficients; one in the distribution has 1


def warnings(reference: Mapping[str, Any], facts: Mapping[str, float], features: Sequence[float]) -> list[str]:
    """The warnings that a recording deserves; none where the reference tells too little to judge.

    reference: `data` of an archive's statistics.json, or nothing; facts: of `FACTS`, in the manifest's units;
    features: mean MFCC of the recording, (n_mfcc,).
    """
    known = reference.get("numeric", {})
    found = [text for name, text in FACTS.items() if outside(known.get(name, {}), facts[name])]
    return found + [SOUND] * (distance(reference.get("features", {}), features) > FAR)


def outside(known: Mapping[str, Any], value: float) -> bool:
    """Whether `value` lies beyond the fences around what was `known` of its column.

    >>> outside({"edges": [4.0, 5.0, 6.0], "median": 5.0}, 6.5), outside({"edges": [4.0, 5.0, 6.0], "median": 5.0}, 8.5)
    (False, True)
    """
    edges = known.get("edges", [])
    if not edges or "median" not in known:
        return False
    room = max(REACH * (edges[-1] - edges[0]), LEAST * abs(known["median"]))
    return not edges[0] - room <= value <= edges[-1] + room


def distance(known: Mapping[str, Any], features: Sequence[float]) -> float:
    """How far a recording's mean features lie from the reference's: root mean square of standardised differences."""
    if "mean" not in known or len(known["mean"]) != len(features):
        return 0.0
    mean, sd = np.array(known["mean"]), np.array(known["sd"])  # (n_mfcc,)
    sd = np.maximum(sd, 1e-6 * np.maximum(1, np.abs(mean)))  # a constant coefficient
    return float(np.sqrt(np.mean(((np.array(features) - mean) / sd) ** 2)))
