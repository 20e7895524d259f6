"""The manifest of lake/audio/<partition>: one row a recording that was accepted.

Its columns are the contract between extract and all that follows; file names and subjects are digests.
"""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spira_train.landing import Row
from spira_train.store import REPORT, Lake, digest_json

NAME = "manifest.parquet"
SCHEMA = pa.schema(
    [
        pa.field("recording", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("subject", pa.string(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("sex", pa.string()),
        pa.field("age", pa.int16()),
        pa.field("dyspnoea", pa.int8()),
        pa.field("site", pa.string()),
        pa.field("device", pa.string()),
        pa.field("cause", pa.string()),
        pa.field("spo2", pa.float32()),
        pa.field("seconds", pa.float32(), nullable=False),
        pa.field("rms_dbfs", pa.float32(), nullable=False),
        pa.field("snr_db", pa.float32(), nullable=False),
        pa.field("peak", pa.float32(), nullable=False),
        pa.field("clipped", pa.float32(), nullable=False),
        pa.field("source_rate", pa.int32(), nullable=False),
        pa.field("source_channels", pa.int8(), nullable=False),
        pa.field("bandwidth_hz", pa.float32(), nullable=False),
        pa.field("source_digest", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Heard:
    """A recording that decodes: its row, and the facts of its sound by the names of the manifest's columns."""

    row: Row
    facts: dict[str, Any]

    @property
    def recording(self) -> str:
        return str(self.facts["recording"])


@dataclass(frozen=True)
class Past:
    """What earlier partitions hold: label by recording, (label, split) by subject, and digests of their manifests."""

    recordings: dict[str, int]
    subjects: dict[str, tuple[int, str]]
    digests: dict[str, str]


def earlier(lake: Lake, partition: str) -> Past:
    """What the partitions before `partition` accepted."""
    recordings: dict[str, int] = {}
    subjects: dict[str, tuple[int, str]] = {}
    digests: dict[str, str] = {}
    for key in lake.partitions("audio"):
        if key >= partition or not lake.exists("audio", key, REPORT):
            continue
        columns = ["recording", "label", "subject", "split"]
        rows = pq.read_table(io.BytesIO(lake.read("audio", key, NAME)), columns=columns).to_pylist()
        for row in rows:
            recordings.setdefault(row["recording"], row["label"])
            subjects.setdefault(row["subject"], (row["label"], row["split"]))
        digests[f"audio/{key}"] = digest_json(sorted(list(row.values()) for row in rows))
    return Past(recordings, subjects, digests)


def table(accepted: Sequence[Heard]) -> pa.Table:
    """One row a recording, ordered by digest, so that the order of the metadata changes nothing."""
    rows = [asdict(h.row) | h.facts for h in sorted(accepted, key=lambda h: h.recording)]
    return pa.Table.from_pylist([{name: row[name] for name in SCHEMA.names} for row in rows], schema=SCHEMA)
