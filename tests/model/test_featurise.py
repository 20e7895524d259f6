"""What may be mixed into the features: crowds of training recordings, label-blind, where it is asked for."""

import numpy as np
import pytest

from spira_train import config as configuration
from spira_train import featurise, noise
from spira_train.audio import to_flac
from spira_train.config import Config
from spira_train.store import Lake

DAY = "2026-11-03"


def recipe(**law: object) -> Config:
    named = {f"noise.{name}": value for name, value in {"variants": 2, **law}.items()}
    return configuration.resolve(configuration.preset_files("fast"), named | {"partition": DAY, "threads": 1})


@pytest.fixture(scope="module")
def spoken() -> tuple[Lake, list[dict]]:
    """Two training recordings, one of each label, and one for validation: between loud sounds a level of its own."""
    lake, rows, rng = Lake("memory://featurise"), [], np.random.default_rng(0)
    for number, split in enumerate(("train", "train", "validation")):
        wave = rng.standard_normal(32000) * 3000
        wave[12000:20000] = 100 * (number + 1)
        file = f"{number}.flac"
        lake.fs.pipe_file(lake.path("audio", DAY, file), to_flac(wave.astype(np.int16)))
        rows.append({"recording": file, "subject": file, "label": number % 2, "split": split, "file": file})
    return lake, rows


TRACK = [np.full(4000, 0.1, np.float32)]


def test_a_crowd_is_made_of_training_recordings_of_both_labels(spoken, monkeypatch):
    lake, rows = spoken
    heard = []
    real = noise.insert
    monkeypatch.setattr(noise, "insert", lambda speech, _, **law: heard.append(law["voices"]) or real(speech, _, **law))
    featurise.compute(lake, DAY, rows, recipe(crowd=0.5), TRACK)
    assert len(heard) == 6  # two variants of each, validation too
    for voices in heard:
        assert [round(float(np.median(voice[12000:20000])) * 32768) for voice in voices] == [100, 200]
    heard.clear()
    featurise.compute(lake, DAY, rows, recipe(), TRACK)
    assert heard == [[]] * 6


def test_crowds_and_reshaping_change_the_noisy_variants_alone_and_ignore_labels(spoken):
    lake, rows = spoken
    plain, noisy, _ = featurise.compute(lake, DAY, rows, recipe(), TRACK)
    for law in ({"crowd": 1.0}, {"reshape": 1.0}):
        clean, other, _ = featurise.compute(lake, DAY, rows, recipe(**law), TRACK)
        assert np.array_equal(clean, plain)
        assert not np.array_equal(other, noisy)
        swapped = [row | {"label": 1 - row["label"]} for row in rows]
        assert np.array_equal(featurise.compute(lake, DAY, swapped, recipe(**law), TRACK)[1], other)
