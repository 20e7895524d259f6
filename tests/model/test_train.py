"""Training: seeded, resumable to the same bytes, label-blind, honest about what it cannot do."""

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SPIRA_TRAIN, spira_train, start_run

from spira_train import config as configuration
from spira_train.dataset import Dataset, window_of
from spira_train.outcome import BadInput
from spira_train.store import digest_folder
from spira_train.tracking import Tracker
from spira_train.train import _batches, choose_device, fit, noam

CONFIG = configuration.resolve(configuration.preset_files("fast"), {"partition": "2026-11-03"})


@pytest.mark.parametrize(("step", "factor"), [(1, 0.001), (1000, 1.0), (10_000, 1000**0.5 / 10_000**0.5)])
def test_noam_curve(step, factor):
    assert noam(step, 1000) == pytest.approx(factor)


def test_same_seed_same_bytes_other_seed_other_bytes(trained, tmp_path):
    lake, run = trained
    again = start_run(lake, tmp_path)
    other = start_run(lake, tmp_path, seed=43)
    assert spira_train("train", "--run", again, "--lake", lake)[0] == 0
    assert digest_folder(again / "train") == digest_folder(run / "train")
    assert spira_train("features", "--run", other, "--lake", lake)[0] == 0
    assert spira_train("train", "--run", other, "--lake", lake)[0] == 0
    theirs, ours = digest_folder(other / "train"), digest_folder(run / "train")
    assert theirs["model.safetensors"] != ours["model.safetensors"]


def test_second_training_is_not_done(trained):
    lake, run = trained
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (run / "train").iterdir()}
    code, line, _ = spira_train("train", "--run", run, "--lake", lake)
    assert (code, line["cached"]) == (0, True)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (run / "train").iterdir()} == before


def test_killed_training_ends_in_the_same_bytes(trained, tmp_path):
    """SIGKILL at random moments, again and again, then let it finish."""
    lake, _ = trained
    whole = start_run(lake, tmp_path / "whole", train__epochs=8, train__patience=0)
    torn = start_run(lake, tmp_path / "torn", train__epochs=8, train__patience=0)
    assert spira_train("train", "--run", whole, "--lake", lake)[0] == 0
    luck, kills, resumed = random.Random(7), 0, False  # noqa: S311
    while kills < 6:
        process = subprocess.Popen(
            [SPIRA_TRAIN, "train", "--run", torn, "--lake", lake],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert process.stderr
        first = process.stderr.readline()  # the first line comes once training is under way
        resumed = resumed or "taking up after epoch" in first
        time.sleep(luck.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        assert not (torn / "train" / "model.safetensors").exists() or (torn / "train" / "report.json").exists()
    assert resumed
    assert spira_train("train", "--run", torn, "--lake", lake)[0] == 0
    assert digest_folder(torn / "train") == digest_folder(whole / "train")
    assert sorted(p.name for p in torn.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_older_partition_leaves_training_to_the_newest(trained, tmp_path):
    lake, _ = trained
    older = start_run(lake, tmp_path, partition="2026-11-02")
    code, line, _ = spira_train("train", "--run", older, "--lake", lake)
    assert (code, line["outcome"]) == (99, "nothing_to_do")
    assert "2026-11-03 has landed" in line["message"]
    each = start_run(lake, tmp_path, partition="2026-11-02", train_each="true")
    assert spira_train("train", "--run", each, "--lake", lake)[0] == 0
    assert json.loads((each / "train" / "report.json").read_text())["summary"]["partitions"] == [
        "2026-11-01",
        "2026-11-02",
    ]


def test_history_is_bounded_by_days():
    landed = [f"2026-11-{day:02d}" for day in range(1, 6)]
    newest = CONFIG.model_copy(update={"partition": "2026-11-05"})
    assert window_of(newest, landed) == landed
    bounded = newest.model_copy(update={"data": CONFIG.data.model_copy(update={"history_days": 2})})
    assert window_of(bounded, landed) == landed[-2:]
    assert window_of(CONFIG, landed) == ["2026-11-03"]


def test_gpu_that_is_not_there_is_told():
    if torch.cuda.is_available():
        assert choose_device("auto").type == "cuda"
    else:
        assert choose_device("auto").type == "cpu"
        with pytest.raises(BadInput, match="torch sees no GPU"):
            choose_device("cuda")


def test_diverging_training_says_so(tmp_path):
    """A number that is not one, planted into the features, stands for every way to diverge."""
    variants = np.zeros((1, 8, 401, 40), np.float32)
    variants[0, 3] = np.nan
    data = Dataset(variants, np.arange(9), np.array([0.0, 1.0] * 4, np.float32), [])
    with pytest.raises(BadInput, match=r"diverged: the loss of epoch 1 is nan; lower train\.learning_rate"):
        fit(data, data, CONFIG, torch.device("cpu"), tmp_path / "checkpoint", Tracker(None, tmp_path, CONFIG))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data__min_subjects": 500}, "data.min_subjects asks for 500"),
        ({"model__name": "resnet"}, "'resnet' is unknown"),
    ],
)
def test_what_cannot_be_trained_is_told(trained, tmp_path, overrides, words):
    lake, _ = trained
    run = start_run(lake, tmp_path, **overrides)
    code, line, errors = spira_train("train", "--run", run, "--lake", lake)
    assert (code, words in line["message"]) == (10, True)
    assert "Traceback" not in errors


def test_mlflow_that_is_away_does_not_stop_a_training(trained, tmp_path):
    lake, run = trained
    again = start_run(lake, tmp_path)
    code, _, errors = spira_train("train", "--run", again, "--lake", lake, "--mlflow", "http://127.0.0.1:9")
    assert code == 0
    assert "MLflow at http://127.0.0.1:9 does not answer" in errors
    assert digest_folder(again / "train") == digest_folder(run / "train")


def test_draws_are_blind_to_the_label():
    """The same recordings under swapped labels get the same order and the same noise."""
    count = 12
    variants = np.zeros((3, count * 2, 1, 1), np.float32)
    names = [str(i) for i in range(count)]
    labels = np.array([0.0, 1.0] * (count // 2), np.float32)
    one = Dataset(variants, np.arange(0, count * 2 + 1, 2), labels, names)
    two = Dataset(variants, one.offsets, 1 - labels, names)
    for (rows, noise, y), (rows2, noise2, y2) in zip(_batches(one, CONFIG, 3), _batches(two, CONFIG, 3), strict=True):
        assert (rows == rows2).all()
        assert (noise == noise2).all()
        assert (y == 1 - y2).all()


def test_every_recording_is_seen_once_an_epoch():
    count = 13
    data = Dataset(np.zeros((1, count, 1, 1), np.float32), np.arange(count + 1), np.zeros(count, np.float32), [])
    seen = np.concatenate([rows for rows, _, _ in _batches(data, CONFIG, 1)])
    assert sorted(seen.tolist()) == list(range(count))


@pytest.mark.parametrize("step", ["extract", "features"])
def test_killed_step_ends_in_the_same_bytes(small_lake, tmp_path, step):
    lakes = []
    luck = random.Random(step)  # noqa: S311
    for name in ("whole", "torn"):
        lake = tmp_path / name
        shutil.copytree(small_lake, lake)
        run = start_run(lake, tmp_path / f"{name}-runs")
        if step == "features":
            assert spira_train("extract", "--run", run, "--lake", lake)[0] == 0
        lakes.append((lake, run))
    (whole, whole_run), (torn, torn_run) = lakes
    assert spira_train(step, "--run", whole_run, "--lake", whole)[0] == 0
    for _ in range(5):
        process = subprocess.Popen(
            [SPIRA_TRAIN, step, "--run", torn_run, "--lake", torn], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        time.sleep(luck.uniform(1.0, 4.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for report in Path(torn).rglob("report.json"):
            outputs = json.loads(report.read_text())["outputs"]
            if not any(part.startswith(".") for part in report.relative_to(torn).parts):
                assert digest_folder(report.parent) == outputs
    assert spira_train(step, "--run", torn_run, "--lake", torn)[0] == 0
    assert _visible(torn) == _visible(whole)


def _visible(lake: Path) -> dict[str, str]:
    return {k: v for k, v in digest_folder(lake).items() if not k.endswith("report.json")}


def test_disk_space_is_not_eaten_by_checkpoints(trained):
    _, run = trained
    assert [p.name for p in run.rglob("*.safetensors")] == ["model.safetensors"]
    assert list((run / "checkpoint").iterdir()) == []
