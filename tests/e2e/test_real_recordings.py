"""The whole of training on real, dirty recordings: the public covid19-cough set, its call-centre part.

It shows that the pipeline works on what people really send. It is neither SPIRA's data nor its question.
"""

import json
import os
from pathlib import Path

import pytest

from spira_train import covid19_cough, extract, featurise, train, validate
from spira_train.config import CONFIG_DIR, preset_files, resolve
from spira_train.store import Lake

SHARED = Path(os.environ.get("SPIRA_SHARED", Path(__file__).resolve().parents[3] / "shared" / "data"))
CALL_CENTRE, TELEGRAM = "2020-12-01", "2020-12-02"


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "covid19-cough").is_dir(), reason=f"no recordings in {SHARED}; set SPIRA_SHARED")
def test_call_centre_coughs_are_told_apart_beyond_chance(tmp_path, capsys):
    place, run = Lake(str(tmp_path / "lake")), tmp_path / "run"
    covid19_cough.run(source=SHARED / "covid19-cough", lake=place.uri)
    overrides = {"partition": CALL_CENTRE, "train_each": True, "threads": 2}
    config = resolve(preset_files("cough"), overrides)
    accepted = extract.run(lake=place, config=config, partition=CALL_CENTRE)["summary"]
    assert (accepted["delivered"], accepted["accepted"]) == (700, 696)
    featurise.run(lake=place, config=config, partition=CALL_CENTRE)
    train.run(run=run, lake=place, config=config)
    validate.run(run=run, lake=place, config=config, gate=CONFIG_DIR / "gate.yaml")
    metrics = json.loads((run / "validate" / "metrics.json").read_text())
    verdict = json.loads((run / "validate" / "verdict.json").read_text())
    auc = metrics["clean"]["auc"]
    with capsys.disabled():
        print(
            f"\ncovid19-cough, call centre: test AUC {auc['value']:.3f} "
            f"({auc['low']:.3f} to {auc['high']:.3f}, 95 %), gate: {verdict['verdict']}"
        )
    assert auc["low"] > 0.5
    assert {"baseline_loudness_length", "baseline_setting"} <= metrics.keys()  # shown beside it

    # The Telegram part arrives as a later day: it is trained on as well, but not in silence.
    later = tmp_path / "later"
    config = resolve(preset_files("cough"), overrides | {"partition": TELEGRAM, "train.epochs": 2})
    refused = extract.run(lake=place, config=config, partition=TELEGRAM)["summary"]["reasons"]
    assert refused["contradicting_labels"] >= 228
    assert {"duplicate", "too_short"} <= set(refused)
    for key in (CALL_CENTRE, TELEGRAM):
        featurise.run(lake=place, config=config, partition=key)
    train.run(run=later, lake=place, config=config)
    validate.run(run=later, lake=place, config=config, gate=CONFIG_DIR / "gate.yaml")
    found = json.loads((later / "validate" / "drift.json").read_text())
    drifted = {finding["name"] for finding in found["findings"] if finding["drifted"]}
    assert found["reference"] == "the earlier partitions"
    assert {"label", "site", "device", "source_rate", "source_channels", "bandwidth_hz", "features"} <= drifted
    assert "validate: drift: bandwidth_hz: median 8000, was 4000" in capsys.readouterr().err
    assert "bandwidth_hz: median 8000" in (later / "validate" / "report.html").read_text()
