"""Training: seeded, resumable to the same bytes, label-blind, honest about what it cannot do."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline import SERVER, kill_after, prepare, start_run

from spira_train import config as configuration
from spira_train import extract, featurise, train
from spira_train.dataset import Dataset, window_of
from spira_train.outcome import BadInput, NothingToDo
from spira_train.store import Lake, digest_folder
from spira_train.tracking import Tracker

CONFIG = configuration.resolve(configuration.preset_files("fast"), {"partition": "2026-11-03"})
SERVER.set_forkserver_preload(["spira_train.train", "spira_train.extract", "spira_train.featurise"])


def fit(lake: Path, run: Path, config, mlflow: str | None = None) -> dict:
    return train.run(run=run, lake=Lake(str(lake)), config=config, mlflow=mlflow)


def one_partition(step: str, lake: Path, config, key: str) -> None:
    {"extract": extract, "features": featurise}[step].run(lake=Lake(str(lake)), config=config, partition=key)


@pytest.mark.parametrize(("step", "factor"), [(1, 0.001), (1000, 1.0), (10_000, 1000**0.5 / 10_000**0.5)])
def test_noam_curve(step, factor):
    assert train.noam(step, 1000) == pytest.approx(factor)


def test_the_reference_preset_is_v1s():
    """The fields' own defaults are v1's values; `spira_v1.yaml` must name whatever `default.yaml` changes."""
    preset = configuration.resolve(configuration.preset_files("spira_v1"), {"partition": "2026-11-03"})
    named = {"noise.variants": 8, "train.epochs": 1000, "train.patience": 0}
    assert preset == configuration.resolve([], named | {"partition": "2026-11-03"})
    default = configuration.resolve(configuration.preset_files("default"), {"partition": "2026-11-03"})
    assert default.model.name != preset.model.name


def test_same_seed_same_bytes_other_seed_other_bytes(trained, tmp_path):
    lake, run = trained
    again, config = start_run(lake, tmp_path)
    fit(lake, again, config)
    assert digest_folder(again / "train") == digest_folder(run / "train")
    other, config = start_run(lake, tmp_path, seed=43)
    prepare(lake, config)
    fit(lake, other, config)
    theirs, ours = digest_folder(other / "train"), digest_folder(run / "train")
    assert theirs["model.safetensors"] != ours["model.safetensors"]


def test_second_training_is_not_done(trained):
    lake, run = trained
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (run / "train").iterdir()}
    assert fit(lake, run, configuration.load(run))["cached"] is True
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (run / "train").iterdir()} == before


@pytest.mark.slow
def test_killed_training_ends_in_the_same_bytes(trained, tmp_path, capsys):
    """SIGKILL at random moments, again and again, then let it finish; with all that a training carries along."""
    lake, _ = trained
    everything = {"train__epochs": 40, "train__mixup": 0.4, "train__average": 0.95, "train__time_masks": 2}
    whole, config = start_run(lake, tmp_path / "whole", **everything)
    torn, _ = start_run(lake, tmp_path / "torn", **everything)
    fit(lake, whole, config)
    luck, seen = random.Random(7), set()

    def advanced() -> bool:
        now = {file.read_bytes() for file in (torn / "checkpoint").glob("*.safetensors")}
        return bool(now - seen)

    for _ in range(5):
        kill_after(luck.uniform(0, 0.1), fit, lake, torn, config, begun=advanced)
        seen |= {file.read_bytes() for file in (torn / "checkpoint").glob("*.safetensors")}
        assert not (torn / "train").exists()
    assert len(seen) == 5
    fit(lake, torn, config)
    assert "taking up after epoch" in capsys.readouterr().err
    assert digest_folder(torn / "train") == digest_folder(whole / "train")
    assert sorted(p.name for p in torn.iterdir()) == sorted(p.name for p in whole.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("step", ["extract", "features"])
def test_killed_step_ends_in_the_same_bytes(small_lake, tmp_path, step):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    _, config = start_run(whole, tmp_path / "runs")
    for lake in (whole, torn):
        shutil.copytree(small_lake, lake)
        if step == "features":
            for key in window_of(config, Lake(str(lake)).partitions()):
                one_partition("extract", lake, config, key)
    prepare(whole, config)
    luck = random.Random(step)
    for key in window_of(config, Lake(str(torn)).partitions()):
        for _ in range(4):
            kill_after(luck.uniform(0.05, 0.6), one_partition, step, torn, config, key)
            for report in torn.rglob("report.json"):
                if not any(part.startswith(".") for part in report.relative_to(torn).parts):
                    assert digest_folder(report.parent) == json.loads(report.read_text())["outputs"]
        one_partition(step, torn, config, key)
    areas = ("audio", "quarantine") if step == "extract" else ("audio", "quarantine", "features")
    assert [digest_folder(torn / area) for area in areas] == [digest_folder(whole / area) for area in areas]


def test_older_partition_leaves_training_to_the_newest(trained, tmp_path):
    lake, _ = trained
    older, config = start_run(lake, tmp_path, partition="2026-11-02")
    with pytest.raises(NothingToDo, match="partition 2026-11-03 has landed since"):
        fit(lake, older, config)
    each, config = start_run(lake, tmp_path, partition="2026-11-02", train_each=True)
    assert fit(lake, each, config)["summary"]["partitions"] == ["2026-11-01", "2026-11-02"]


def test_a_day_that_is_still_being_collected_does_not_keep_the_others_from_training(trained, tmp_path):
    lake = Path(shutil.copytree(trained[0], tmp_path / "lake"))
    (lake / "collection/2026-11-03/events").mkdir(parents=True)
    older, config = start_run(lake, tmp_path, partition="2026-11-02", train__epochs=1)
    assert fit(lake, older, config)["summary"]["partitions"] == ["2026-11-01", "2026-11-02"]
    (lake / "collection/2026-11-03/closed.json").write_text("{}")
    closed, config = start_run(lake, tmp_path, partition="2026-11-02", train__epochs=2)
    with pytest.raises(NothingToDo, match="partition 2026-11-03 has landed since"):
        fit(lake, closed, config)


def test_what_was_trained_on_is_on_record(trained):
    lake, run = trained
    known = json.loads((run / "train/recordings.json").read_text())
    rows = [row for key in Lake(str(lake)).partitions() for row in featurise.manifest(Lake(str(lake)), key)]
    wanted = {row["recording"]: row["source_digest"] for row in rows if row["split"] != "test"}
    assert known == wanted
    assert 0 < len(known) < len(rows)


def test_history_is_bounded_by_days():
    landed = [f"2026-11-{day:02d}" for day in range(1, 6)]
    newest = CONFIG.model_copy(update={"partition": "2026-11-05"})
    assert window_of(newest, landed) == landed
    bounded = newest.model_copy(update={"data": CONFIG.data.model_copy(update={"history_days": 2})})
    assert window_of(bounded, landed) == landed[-2:]
    assert window_of(CONFIG, landed) == ["2026-11-03"]


def test_gpu_that_is_not_there_is_told():
    if torch.cuda.is_available():
        assert train.choose_device("auto").type == "cuda"
    else:
        assert train.choose_device("auto").type == "cpu"
        with pytest.raises(BadInput, match="torch sees no GPU"):
            train.choose_device("cuda")


def test_diverging_training_says_so(tmp_path):
    """A number that is not one, planted into the features, stands for every way to diverge."""
    variants = np.zeros((1, 8, 401, 40), np.float32)
    variants[0, 3] = np.nan
    data = Dataset(variants, np.arange(9), np.array([0.0, 1.0] * 4, np.float32), [])
    with pytest.raises(BadInput, match=r"diverged: the loss of epoch 1 is nan; lower train\.learning_rate"):
        train.fit(data, data, CONFIG, torch.device("cpu"), tmp_path / "checkpoint", Tracker(None, tmp_path, CONFIG))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data__min_subjects": 500}, r"data\.min_subjects asks for 500"),
        ({"model__name": "resnet"}, "'resnet' is unknown"),
    ],
)
def test_what_cannot_be_trained_is_told(trained, tmp_path, overrides, words):
    lake, _ = trained
    run, config = start_run(lake, tmp_path, **overrides)
    with pytest.raises(BadInput, match=words):
        fit(lake, run, config)
    assert not (run / "train").exists()


def test_mlflow_that_is_away_does_not_stop_a_training(trained, tmp_path, capsys):
    lake, run = trained
    again, config = start_run(lake, tmp_path)
    fit(lake, again, config, "http://127.0.0.1:9")
    assert "MLflow at http://127.0.0.1:9 does not answer" in capsys.readouterr().err
    assert digest_folder(again / "train") == digest_folder(run / "train")


def test_draws_are_blind_to_the_label():
    """The same recordings under swapped labels get the same order and the same noise."""
    count = 12
    variants = np.zeros((3, count * 2, 1, 1), np.float32)
    names = [str(i) for i in range(count)]
    labels = np.array([0.0, 1.0] * (count // 2), np.float32)
    one = Dataset(variants, np.arange(0, count * 2 + 1, 2), labels, names)
    two = Dataset(variants, one.offsets, 1 - labels, names)
    pairs = zip(train.batches(one, CONFIG, 3), train.batches(two, CONFIG, 3), strict=True)
    for (rows, noise, y), (rows2, noise2, y2) in pairs:
        assert (rows == rows2).all()
        assert (noise == noise2).all()
        assert (y == 1 - y2).all()


def test_every_recording_is_seen_once_an_epoch():
    count = 13
    data = Dataset(np.zeros((1, count, 1, 1), np.float32), np.arange(count + 1), np.zeros(count, np.float32), [])
    seen = np.concatenate([rows for rows, _, _ in train.batches(data, CONFIG, 1)])
    assert sorted(seen.tolist()) == list(range(count))


def test_time_stands_still_where_it_is_masked():
    windows = torch.arange(50.0)[None, None, :, None].repeat(2, 1, 1, 3)
    train.hold(windows, 3, 10, np.random.default_rng(0))
    held = windows[0, 0, :, 0]
    assert not torch.equal(held, torch.arange(50.0))
    assert set(held.tolist()) <= set(range(50))
    assert (held.diff() >= 0).all() or (held <= torch.arange(50.0)).all()


def toy(count: int = 12, frames: int = 60) -> Dataset:
    """Recordings of one window, clean and noisy; patients are louder in the second half."""
    rng = np.random.default_rng(0)
    variants = rng.standard_normal((2, count, frames, 40)).astype(np.float32)
    labels = np.array([0.0, 1.0] * (count // 2), np.float32)
    variants[:, labels == 1, frames // 2 :] *= 3
    return Dataset(variants, np.arange(count + 1), labels, [str(i) for i in range(count)])


def fitted(folder: Path, epochs: int = 3, **overrides: object) -> train.State:
    """A few epochs on `toy`, from the checkpoint in `folder` where there is one."""
    named = {f"train.{name}": value for name, value in overrides.items()} | {"train.epochs": epochs, "threads": 1}
    config = configuration.resolve(configuration.preset_files("fast"), named | {"partition": "2026-11-03"})
    tracker = Tracker(None, folder, config)
    return train.fit(toy(), toy(), config, torch.device("cpu"), folder / "checkpoint", tracker)


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_mixup_blends_each_window_with_another_and_its_label_by_the_same_share():
    labels = torch.tensor([0.0, 1, 0, 1, 1, 0])
    windows = torch.stack([labels, torch.arange(6.0)], 1)[:, None, None]  # (6, 1, 1, 2): label and number
    mixed, wanted = train.mix(windows, labels, 0.8, np.random.default_rng(0))
    assert torch.allclose(mixed[:, 0, 0, 0], wanted)
    assert ((wanted > 0) & (wanted < 1)).any()
    assert len(set(mixed[:, 0, 0, 1].tolist())) > 3
    assert 0 <= float(mixed[:, 0, 0, 1].min()) <= float(mixed[:, 0, 0, 1].max()) <= 5
    again, _ = train.mix(windows, labels, 0.8, np.random.default_rng(0))
    assert torch.equal(mixed, again)
    assert torch.equal(windows[:, 0, 0, 1], torch.arange(6.0))


def test_mixup_changes_what_is_learnt_only_where_it_is_asked_for(tmp_path):
    plain = fitted(tmp_path / "plain", mixup=0.0)
    assert same(plain.best, fitted(tmp_path / "again", mixup=0.0).best)
    assert not same(plain.best, fitted(tmp_path / "mixed", mixup=0.4).best)


def test_the_average_lies_between_where_the_weights_were_and_are():
    state = train.State(CONFIG, 60, 40, torch.device("cpu"))
    before = {k: v.clone() for k, v in state.average.items()}
    state.steps = 1000
    with torch.no_grad():
        for weight in state.network.parameters():
            weight.add_(1.0)
    state.follow(0.9)
    assert all(torch.allclose(state.average[k] - before[k], torch.tensor(0.1), atol=1e-6) for k in before)
    state.steps = 10  # half of it at most, while the random start is near
    state.follow(0.9)
    assert all(torch.allclose(state.average[k] - before[k], torch.tensor(0.55), atol=1e-6) for k in before)


def test_without_averaging_the_weights_themselves_are_kept(tmp_path):
    state = fitted(tmp_path, average=0.0)
    now = state.network.state_dict()
    assert same(state.average, dict(now))
    averaged = fitted(tmp_path / "averaged", average=0.9)
    assert not same(averaged.average, dict(averaged.network.state_dict()))
    if averaged.best_epoch == 3:
        assert same(averaged.best, averaged.average)


def test_a_checkpoint_carries_the_average_and_a_resumed_training_repeats_all_draws(tmp_path):
    recipe = {"mixup": 0.4, "average": 0.9, "time_masks": 2}
    whole = fitted(tmp_path / "whole", epochs=6, **recipe)
    fitted(tmp_path / "torn", epochs=2, **recipe)
    torn = fitted(tmp_path / "torn", epochs=6, **recipe)
    assert same(torn.average, whole.average)
    assert same(torn.best, whole.best)
    assert torn.curves == whole.curves
    assert (tmp_path / "torn/checkpoint").read_bytes() == (tmp_path / "whole/checkpoint").read_bytes()


def test_checkpoints_do_not_stay(trained):
    _, run = trained
    assert [p.name for p in run.rglob("*.safetensors")] == ["model.safetensors"]
    assert list((run / "checkpoint").iterdir()) == []
