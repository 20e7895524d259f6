"""The table of `bench.coughs` in a quick form: two folds, few epochs, real recordings."""

import math
from pathlib import Path

import pytest

from bench import coughs
from spira_train.config import preset_files, resolve

DATA = coughs.SHARED / "covid19-cough"


@pytest.mark.slow
@pytest.mark.skipif(
    not (DATA / "metadata.json").exists(),
    reason="needs the covid19-cough recordings: set SPIRA_SHARED to their parent",
)
def test_a_network_of_few_epochs_hears_more_than_loudness_and_length(tmp_path: Path) -> None:
    lake = coughs.land(DATA, tmp_path / "lake")
    quick = {"partition": coughs.CALLS, "threads": 1, "train.epochs": 8, "noise.variants": 0, "train.device": "cpu"}
    table = coughs.measure(lake, resolve(preset_files("cough"), quick), [1], 2, tmp_path)
    calls, telegram = (
        {row["system"]: row for row in table if row["asked"].startswith(where)} for where in ("call", "telegram")
    )
    assert [row["asked"] for row in table] == ["call centre, folds 1: 696 files"] * 4 + ["telegram: 390 files"] * 4
    for row in table:
        values = [*row["auc"].values(), row["balanced"], *(row["gain"] or {}).values()]
        assert all(map(math.isfinite, values))
        assert row["auc"]["low"] < row["auc"]["value"] < row["auc"]["high"]
    # what other means measured on these files, with half of them to learn from instead of four fifths
    assert calls[coughs.RULER]["auc"]["value"] == pytest.approx(0.70, abs=0.03)
    assert calls[coughs.LINEAR]["auc"]["value"] == pytest.approx(0.79, abs=0.03)
    assert calls[coughs.OURS]["auc"]["low"] > 0.70
    assert calls[coughs.RULER]["gain"]["low"] > 0
    # labels of the telegram part are other people's, and none was learned from
    assert 0.4 < telegram[coughs.OURS]["auc"]["value"] < 0.8
