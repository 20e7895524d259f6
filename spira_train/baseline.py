"""What can be said without listening: models that see a recording's circumstances and never its speech.

A network that is no better than these has learned the hospital's paperwork or its microphones. They are fitted on the
training split and asked about the test set, as the network is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# name -> (numbers, categories), columns of the manifest
BASELINES = {
    "age_sex": (("age",), ("sex",)),
    "loudness_length": (("rms_dbfs", "peak", "seconds"), ()),
    "setting": (("bandwidth_hz", "source_rate", "source_channels"), ("site", "device")),
}
NAMES = {
    "age_sex": "Age and sex alone",
    "loudness_length": "Loudness and length alone",
    "setting": "Site, device and format alone",
}

Rows = Sequence[Mapping[str, Any]]


def answers(name: str, train: Rows, test: Rows) -> list[float]:
    """The baseline `name` (of `BASELINES`), fitted on `train`, on each of `test`: probabilities.

    Rows are the manifest's. Where nothing is known that could tell them apart, everybody gets the same answer.
    """
    numbers, categories = BASELINES[name]
    typical = {}
    for column in numbers:
        known = [row[column] for row in train if row.get(column) is not None]
        typical[column] = float(np.median(known)) if known else 0.0

    def facts(row: Mapping[str, Any]) -> dict[str, float | str]:
        found: dict[str, float | str] = {column: str(row.get(column) or "unknown") for column in categories}
        for column in numbers:
            value = row.get(column)
            found[column] = typical[column] if value is None else float(value)
            # whether a number is known at all may betray the class
            found[f"{column} is missing"] = float(value is None)
        return found

    model = make_pipeline(DictVectorizer(sparse=False), StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit([facts(row) for row in train], [row["label"] for row in train])
    return [float(p) for p in model.predict_proba([facts(row) for row in test])[:, 1]]
