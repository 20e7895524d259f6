"""What a run trains on: no subject in two splits, both classes in each, windows that belong to their recording."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spira_train import config as configuration
from spira_train.dataset import load
from spira_train.outcome import BadInput
from spira_train.split import split_of
from spira_train.store import Lake

CONFIG = configuration.resolve(configuration.preset_files("fast"), {"partition": "2026-11-03", "data.min_subjects": 1})


def write(lake: Lake, folder: str, rows: list[tuple[str, str, int, str, int]]) -> str:
    """Features of recordings (name, subject, label, split, windows); each value tells its recording and window."""
    index: dict[str, list] = {"recording": [], "subject": [], "label": [], "split": [], "window": []}
    values = []
    for number, (name, subject, label, split, windows) in enumerate(rows):
        for window in range(windows):
            for column, value in zip(index, (name, subject, label, split, window), strict=True):
                index[column].append(value)
            values.append(number * 10 + window)
    clean = np.array(values, np.float32)[:, None, None]
    for file, array in (("clean.npy", clean), ("noisy.npy", clean[None] + 1000)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        lake.fs.pipe_file(lake.path(folder, file), buffer.getvalue())
    buffer = io.BytesIO()
    pq.write_table(pa.table(index), buffer)
    lake.fs.pipe_file(lake.path(folder, "index.parquet"), buffer.getvalue())
    return folder


DAY = [
    ("a", "s1", 0, "train", 2),
    ("b", "s2", 1, "train", 3),
    ("c", "s3", 0, "validation", 1),
    ("d", "s4", 1, "validation", 2),
]


def lake() -> Lake:
    return Lake(f"memory://dataset-{np.random.default_rng().integers(1 << 60)}")


def test_windows_belong_to_their_recording():
    place = lake()
    train = load(
        place, [write(place, "features/1", DAY), write(place, "features/2", [("e", "s5", 1, "train", 2)])], CONFIG
    )["train"]
    assert train.recordings == ["a", "b", "e"]
    assert train.labels.tolist() == [0, 1, 1]
    rows, owner = train.rows([2, 1])
    assert train.variants[0, rows, 0, 0].tolist() == [0, 1, 10, 11, 12]
    assert train.variants[1, rows, 0, 0].tolist() == [1000, 1001, 1010, 1011, 1012]
    assert owner.tolist() == [0, 0, 1, 1, 1]


def test_subject_in_two_splits_fails_the_run():
    place = lake()
    folders = [write(place, "features/1", DAY), write(place, "features/2", [("e", "s1", 0, "validation", 1)])]
    with pytest.raises(BadInput, match="1 subjects stand in two splits"):
        load(place, folders, CONFIG)


@pytest.mark.parametrize("missing", range(4))
def test_one_class_only_is_told(missing):
    place = lake()
    folder = write(place, "features/1", [row for i, row in enumerate(DAY) if i != missing])
    with pytest.raises(BadInput, match=r"split holds 0 (controls|patients), data\.min_subjects asks for 1"):
        load(place, [folder], CONFIG)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), min_size=1, max_size=60), st.randoms())
def test_no_subject_is_in_two_splits_whatever_the_order_of_arrival(arrivals, shuffled):
    """Subjects come back on any day in any order: their split never changes."""
    seen: dict[int, set[str]] = {}
    for _ in range(2):
        for subject, _day in arrivals:
            seen.setdefault(subject, set()).add(split_of(f"{subject:016x}", "spira", 0.15, 0.25))
        shuffled.shuffle(arrivals)
    assert all(len(splits) == 1 for splits in seen.values())
