"""Deliveries of made-up voices for the tests of extract."""

import csv
import io
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import soundfile

from spira_train import extract, manifest
from spira_train.config import Config
from spira_train.store import Lake

DAY, NEXT, LAST = "2020-05-11", "2020-05-12", "2020-05-13"


def voice(seed: int, seconds: float = 0.6) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(int(seconds * 16000)) * 2000).astype(np.int16)


def wav(samples: np.ndarray, rate: int = 16000, **form: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **({"format": "WAV"} | form))
    return buffer.getvalue()


@dataclass
class Day:
    """A delivery in the making."""

    columns: str = "file_path,class"
    rows: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def add(self, name: str, label: int, content: bytes | None, *more: str) -> "Day":
        self.rows.append(",".join([name, str(label), *more]))
        if content is not None:
            self.files[name] = content
        return self

    def land(self, lake: Lake, key: str) -> None:
        text = "\n".join([self.columns, *self.rows]) + "\n"
        for name, content in (self.files | {"metadata.csv": text.encode()}).items():
            lake.fs.makedirs(lake.path("landing", key), exist_ok=True)
            lake.fs.pipe_file(lake.path("landing", key, name), content)


def good_day(first: int = 0, count: int = 4) -> Day:
    day = Day()
    for seed in range(first, first + count):
        day.add(f"r{seed}.wav", seed % 2, wav(voice(seed)))
    return day


def config(key: str = DAY, **sections: dict[str, Any]) -> Config:
    return Config.model_validate({"partition": key} | sections)


def run(lake: Lake, key: str = DAY, **sections: dict[str, Any]) -> dict[str, Any]:
    return extract.run(lake=lake, config=config(key, **sections), partition=key)


def rows_of(lake: Lake, key: str = DAY) -> list[dict[str, Any]]:
    return pq.read_table(io.BytesIO(lake.read("audio", key, manifest.NAME))).to_pylist()


def refused(lake: Lake, key: str = DAY) -> list[tuple[int, str]]:
    text = lake.read("quarantine", key, "refused.csv").decode()
    return [(int(row["line"]), row["reason"]) for row in csv.DictReader(io.StringIO(text))]


def everything(lake: Lake) -> dict[str, bytes]:
    """All that extract has written."""
    return {f"{area}/{p}": lake.read(area, p) for area in ("audio", "quarantine") for p in lake.files(area)}


def bring_up_to(lake: Path, newest: date) -> list[str]:
    """Give the days of a lake new names, the last one `newest`, and nothing else; returns them, oldest first.

    What is recorded, and so what a training on it finds, stays the same on whatever day the test runs.
    """
    days = sorted(p for p in (lake / "landing").iterdir() if not p.name.startswith("."))
    names = [f"{newest - timedelta(days=back)}" for back in reversed(range(len(days)))]
    for day, name in zip(days, names, strict=True):
        day.rename(day.with_name(name))
    return names
