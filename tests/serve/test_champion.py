"""The champion on today's recordings, through a real MLflow: its own archive and its own code answer."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import archive_of, packaged

from spira_train import champion, inference
from spira_train.metrics import Sample
from spira_train.outcome import TryAgain
from spira_train.registry import Registry, promote
from spira_train.store import digest_file
from spira_train.tracking import Tracker
from spira_train.validate import note, rival_of

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]
SOUNDS = [np.random.default_rng(n).standard_normal(16_000 * (2 + n)).astype(np.float32) * 0.1 for n in range(3)]
ASKED = [("clean", sound) for sound in SOUNDS] + [("ward_noise", sound * 2) for sound in SOUNDS]


@pytest.fixture
def registry(mlflow: str):
    known = Registry(mlflow)
    yield known
    for model in known.client.search_registered_models():
        known.client.delete_registered_model(model.name)


def registered(registry: Registry, archive: Path, facts: dict) -> champion.Champion:
    """The archive as the registry's champion."""
    run_id = registry.run(None, f"run-{archive.stem}", {}, {})
    tags = {"archive": digest_file(archive), "version": facts["version"], "weights": facts["weights"]}
    tags["validate"] = facts["validate"]
    promote(registry, registry.create(archive=archive, run_id=run_id, tags=tags))
    found = champion.find(registry)
    assert found
    return found


def test_no_champion_yet(registry):
    assert champion.find(registry) is None


def test_a_promoted_model_is_held_against_itself_once_the_validation_has_changed(registry, tmp_path):
    """Else its verdict would stay against a champion of long ago, and `register` would refuse it for ever."""
    (first, *_, old), (run, _, facts) = packaged(tmp_path, 3), packaged(tmp_path, 4)
    earlier = registered(registry, archive_of(first), old)
    assert rival_of(run, registry, facts["weights"], lambda rival: "validate-4") == earlier  # not promoted yet
    itself = registered(registry, archive_of(run), facts)
    assert rival_of(run, registry, facts["weights"], lambda rival: "validate-4") is None  # as it was then
    assert rival_of(run, registry, facts["weights"], lambda rival: "newer code") == itself


def test_the_evidence_of_a_version_is_never_written_over(mlflow, registry, tmp_path):
    """A run that is trained or validated again, with newer code, gets another run of MLflow."""
    run, config, facts = packaged(tmp_path, 3)
    for name in ("report.html", "metrics.json", "verdict.json"):
        (run / "validate" / name).write_text("first")
    report = {"fingerprint": facts["validate"], "summary": {"verdict": "blessed", "reasons": [], "drift": []}}
    first = Tracker(mlflow, run, config).run_id
    assert Tracker(mlflow, run, config).run_id == first, "a training that was cut off goes on in the same run"
    assert first in note(registry, run, config, report)
    told = {"validate": facts["validate"], "archive": facts["archive"]}
    registry.create(archive=archive_of(run), run_id=first, tags=told)

    assert first in note(registry, run, config, report)
    (run / "validate" / "report.html").write_text("second")
    later = note(registry, run, config, report | {"fingerprint": "newer"})
    assert first not in later
    assert note(registry, run, config, report | {"fingerprint": "newer"}) == later
    kept = registry.client.download_artifacts(first, "validate/report.html", str(tmp_path))
    assert Path(kept).read_text() == "first"
    assert Tracker(mlflow, run, config).run_id not in ("", first)


def test_it_answers_as_its_weights_do(registry, tmp_path):
    run, _, facts = packaged(tmp_path, 3)
    rival = registered(registry, archive_of(run), facts)
    assert (rival.version, rival.weights) == (facts["version"], facts["weights"])
    (tmp_path / "scratch").mkdir()
    found, _ = champion.ask(registry, rival, ASKED, tmp_path / "scratch", 1)
    predictor = inference.load(run / "train")
    for name, factor in (("clean", 1), ("ward_noise", 2)):
        ours = [p.probability for p in predictor.predict([torch.from_numpy(s * np.float32(factor)) for s in SOUNDS])]
        assert found["answers"][name] == pytest.approx([predictor.calibrate(p) for p in ours], abs=1e-6)
    assert found["threshold"] == 0.5


def test_the_code_in_the_archive_answers_and_not_ours(registry, tmp_path):
    run, _, facts = packaged(tmp_path, 3)
    theirs = tmp_path / archive_of(run).name
    with zipfile.ZipFile(archive_of(run)) as old, zipfile.ZipFile(theirs, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "spira_train/inference.py":
                content = content.replace(b"float(a.mean())", b"0.125")
            new.writestr(name, content)
    (tmp_path / "scratch").mkdir()
    found, _ = champion.ask(registry, registered(registry, theirs, facts), ASKED[:1], tmp_path / "scratch", 1)
    assert found["answers"]["clean"] == pytest.approx([0.125])


@pytest.mark.parametrize("harm", ["flipped", "torn", "unloadable"])
def test_a_champion_that_cannot_be_asked_is_worth_a_retry(registry, tmp_path, harm):
    run, _, facts = packaged(tmp_path, 3)
    archive = tmp_path / archive_of(run).name
    shutil.copy(archive_of(run), archive)
    if harm == "unloadable":
        with zipfile.ZipFile(archive, "a") as content:
            content.writestr("spira_train/inference.py", "raise RuntimeError('too old')")
    if harm == "torn":
        archive.write_bytes(archive.read_bytes()[:1000])
    rival = registered(registry, archive, facts)
    if harm == "flipped":
        rival = champion.Champion(rival.version, rival.number, "0" * 64, rival.weights)
    words = {"flipped": "is not the registered one", "torn": "is damaged", "unloadable": "cannot be asked.*too old"}
    (tmp_path / "scratch").mkdir()
    with pytest.raises(TryAgain, match=words[harm]):
        champion.ask(registry, rival, ASKED, tmp_path / "scratch", 1)


def test_comparison_is_paired_and_by_slice():
    labels = [0] * 20 + [1] * 20
    rows = [{"label": y, "subject": i, "sex": "FM"[i % 2], "age": 50} for i, y in enumerate(labels)]
    sample = Sample.of(labels, range(40), 200, np.random.default_rng(0))
    good = np.concatenate([np.linspace(0.05, 0.4, 20), np.linspace(0.6, 0.95, 20)]).tolist()
    bad = [1 - p if i in (0, 1, 2, 20, 21, 22, 24) else p for i, p in enumerate(good)]
    decision = {"threshold": 0.5}

    def compare(ours, theirs):
        answers = {"answers": {"clean": theirs, "ward_noise": theirs}, "threshold": 0.5}
        return champion.compare(rows, sample, ({"clean": ours, "ward_noise": ours}, decision), answers, 8)

    same = compare(good, good)
    assert same["clean"]["auc_gain"] == {"value": 0, "low": 0, "high": 0}
    assert (same["clean"]["won"], same["clean"]["lost"], same["clean"]["mcnemar"]) == (0, 0, 1.0)
    worse = compare(bad, good)
    assert worse["clean"]["lost"] == 7
    assert worse["clean"]["accuracy_gain"] == pytest.approx(-7 / 40)
    assert worse["ward_noise"]["auc_gain"]["high"] < 0
    assert set(worse["slices"]) == {"sex: F", "sex: M", "age: 40 to 59"}
