"""`Dataset`: the windows that a run trains on, in memory, by split."""

import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pyarrow.parquet as pq

from spira_train.config import Config
from spira_train.outcome import BadInput
from spira_train.store import Lake


@dataclass(frozen=True)
class Dataset:
    """Recordings of one split with all their windows.

    variants: (1 + V, N, frames, coefficients) float32; variant 0 is clean, the others carry ward noise.
    offsets: (R + 1,) windows of recording r are offsets[r]:offsets[r + 1]. labels: (R,) 0 control, 1 patient.
    """

    variants: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    recordings: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, picked: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """Window rows of the recordings `picked`, and for each row the position of its recording in `picked`."""
        spans = [np.arange(self.offsets[r], self.offsets[r + 1]) for r in picked]
        return np.concatenate(spans), np.repeat(np.arange(len(spans)), [len(s) for s in spans])


def window_of(config: Config, landed: Sequence[str]) -> list[str]:
    """The partitions that a run works on, oldest first: its own alone, or, where it is to train, its history too."""
    own = config.partition
    newest = max(landed, default=own)
    if own < newest and not config.train_each:
        return [own]
    days = config.data.history_days
    since = (date.fromisoformat(own) - timedelta(days=days - 1)).isoformat() if days else ""
    return sorted({key for key in landed if since <= key <= own} | {own})


def load(lake: Lake, folders: Sequence[str], config: Config) -> dict[str, Dataset]:
    """Read the features in `folders` (paths under the lake) into one `Dataset` a split.

    Raises `BadInput` when a subject stands in two splits, or when a split has too few subjects of a class.
    """
    blocks = [_read(lake, folder) for folder in folders]
    subjects: dict[str, set[str]] = defaultdict(set)
    holds: dict[tuple[str, int], set[str]] = defaultdict(set)
    for _, index in blocks:
        for subject, split, label in zip(index["subject"], index["split"], index["label"], strict=True):
            subjects[subject].add(split)
            holds[split, int(label)].add(subject)
    if torn := sorted(s for s, splits in subjects.items() if len(splits) > 1):
        raise BadInput(
            f"{len(torn)} subjects stand in two splits (pseudonyms {', '.join(s[:8] for s in torn[:3])} ...); "
            "a split given with the data contradicts an earlier partition: correct the `split` column"
        )
    for split in ("train", "validation"):
        for label, name in ((0, "controls"), (1, "patients")):
            count = len(holds[split, label])
            if count < config.data.min_subjects:
                raise BadInput(
                    f"the {split} split holds {count} {name}, data.min_subjects asks for {config.data.min_subjects}; "
                    "wait for more partitions or widen data.history_days"
                )
    return {split: _join(blocks, split) for split in ("train", "validation")}


def _read(lake: Lake, folder: str) -> tuple[list[np.ndarray], dict[str, list]]:
    arrays = [np.load(io.BytesIO(lake.read(folder, f"{name}.npy"))) for name in ("clean", "noisy")]
    index = pq.read_table(io.BytesIO(lake.read(folder, "index.parquet"))).to_pydict()
    return arrays, index


def _join(blocks: Sequence[tuple[list[np.ndarray], dict[str, list]]], split: str) -> Dataset:
    parts, labels, recordings, lengths = [], [], [], []
    for (clean, noisy), index in blocks:
        keep = np.flatnonzero(np.array(index["split"]) == split)
        if not len(keep):
            continue
        parts.append(np.concatenate([clean[None, keep], noisy[:, keep]]))  # (1 + V, n, frames, coefficients)
        previous = None
        for row in keep:
            if index["recording"][row] != previous:
                previous = index["recording"][row]
                recordings.append(previous)
                labels.append(index["label"][row])
                lengths.append(0)
            lengths[-1] += 1
    variants = np.concatenate(parts, axis=1)  # (1 + V, N, frames, coefficients)
    return Dataset(variants, np.concatenate([[0], np.cumsum(lengths)]), np.array(labels, np.float32), recordings)
