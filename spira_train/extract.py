"""The extract step: from a landed partition to canonical audio, or to a refusal with a reason, one by one.

Nothing is dropped in silence: accepted and refused recordings add up to those delivered. What was accepted stands in
lake/audio/<partition>/ (manifest.parquet and one FLAC a recording), what was refused in lake/quarantine/<partition>/
(refused.csv: line of metadata.csv, reason, detail, digest). The recordings themselves stay in landing.
"""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from spira_train import landing, manifest, store
from spira_train.audio import AudioError, decode, to_flac
from spira_train.config import Config, ExtractConfig, SplitConfig
from spira_train.landing import Refusal, Row
from spira_train.manifest import Heard, Past
from spira_train.outcome import BadInput, NothingToDo, TryAgain
from spira_train.progress import say, track
from spira_train.split import split_of
from spira_train.step import fingerprint, perform
from spira_train.store import Lake

# A refusal of the rules below; those of landing.py (metadata) and audio.REASONS (sound) come before them.
DUPLICATE, CONTRADICTING = "duplicate", "contradicting_labels"
TWO_LABELS, TWO_SPLITS = "subject_two_labels", "subject_two_splits"
_THREADS = 2


def run(*, lake: Lake, config: Config, partition: str) -> dict[str, Any]:
    """Extract one partition into lake/audio/<partition> and return the step's report.

    Raises `NothingToDo` where nothing was delivered for that day, `TryAgain` while it is being delivered, `BadInput`
    where the metadata cannot be used or too few recordings are good.
    """
    _check(lake, partition)
    sizes = landing.sizes(lake, partition)
    if not sizes:
        raise NothingToDo(f"landing/{partition}: empty")
    landed, contents = landing.landing_digest(lake, partition)
    past = manifest.earlier(lake, partition)
    sections = {"extract": config.extract.model_dump(), "split": config.split.model_dump()}
    inputs = {f"landing/{partition}": landed} | past.digests
    identity = fingerprint(
        "extract", module="extract", config=sections, inputs=inputs, libraries=("soundfile", "torch", "torchaudio")
    )

    def work(folder: Path) -> dict[str, Any]:
        delivery = landing.read(lake, partition, config.split.salt)
        for warning in delivery.warnings:
            say(warning)
        heard, deaf = _listen(lake, partition, delivery.rows, contents, config.extract, folder)
        accepted, judged = judge(heard, delivery.rows, past, config.split)
        refused = sorted([*delivery.refusals, *deaf, *judged], key=lambda refusal: refusal.line)
        if landing.sizes(lake, partition) != sizes:
            raise TryAgain(_being_written(partition))
        summary = _summary(accepted, refused, delivery.warnings)
        delivered = len(delivery.rows) + len(delivery.refusals)
        if summary["accepted"] + summary["refused"] != delivered:
            raise AssertionError(f"rows lost: {delivered} delivered, {summary}")
        message = _too_few(partition, summary, config.extract)
        _quarantine(lake, partition, identity, inputs, refused, summary | {"message": message})
        if message:
            raise BadInput(message)
        keep = {h.facts["file"] for h in accepted}
        for file in folder.glob("*.flac"):
            if file.name not in keep:
                file.unlink()
        pq.write_table(manifest.table(accepted), folder / manifest.NAME)
        return summary

    try:
        _refused_before(lake, partition, identity)
        return perform("extract", identity, lake.fs, lake.path("audio", partition), work, inputs)
    except BadInput:
        # What an earlier delivery of this day gave must not be trained on now that the day is refused.
        if lake.exists("audio", partition):
            lake.fs.rm(lake.path("audio", partition), recursive=True)
        raise


def judge(
    heard: Sequence[Heard], rows: Iterable[Row], past: Past, config: SplitConfig
) -> tuple[list[Heard], list[Refusal]]:
    """Apply the rules that look across recordings; every accepted recording leaves with its split.

    heard: recordings that decode. rows: all rows that name a label, also of recordings that do not decode.
    The same sound with both labels: refuse all. A subject with both labels, or in two splits: refuse all of the
    subject. The same sound again: keep the first. `past` counts as delivered before.
    """
    sound_labels: dict[str, set[int]] = defaultdict(set)
    for h in heard:
        sound_labels[h.recording] |= {h.row.label} | _one(past.recordings.get(h.recording))
    labels: dict[str, set[int]] = defaultdict(set)
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        label, split = past.subjects.get(row.subject, (None, None))
        labels[row.subject] |= {row.label} | _one(label)
        splits[row.subject] |= _one(row.split) | _one(split)
    accepted: list[Heard] = []
    refused: list[Refusal] = []
    taken: set[str] = set(past.recordings)
    for h in sorted(heard, key=lambda h: h.row.line):
        subject = h.row.subject
        if len(sound_labels[h.recording]) > 1:
            verdict = CONTRADICTING, "the same sound was delivered with both classes"
        elif len(labels[subject]) > 1:
            verdict = TWO_LABELS, "the subject was delivered with both classes"
        elif len(splits[subject]) > 1:
            verdict = TWO_SPLITS, "the subject was delivered for two splits"
        elif h.recording in taken:
            verdict = DUPLICATE, "the same sound was accepted before"
        else:
            taken.add(h.recording)
            given = next(iter(splits[subject]), None)
            split = given or split_of(subject, config.salt, config.validation, config.test)
            accepted.append(replace(h, row=replace(h.row, split=split)))  # type: ignore[arg-type]
            continue
        refused.append(Refusal(h.row.line, *verdict, digest=h.facts["source_digest"]))
    return accepted, refused


def _one(value: Any) -> set[Any]:
    return set() if value is None else {value}


def _check(lake: Lake, partition: str) -> None:
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", partition):
        raise BadInput(f"partition {partition!r}: not a collection day; write it YYYY-MM-DD")
    lake.check()
    if partition not in lake.partitions():
        raise NothingToDo(f"landing/{partition}: nothing was delivered for this day")


def _being_written(partition: str) -> str:
    return f"landing/{partition}: is being written; try again when the delivery is complete"


def _listen(
    lake: Lake,
    partition: str,
    rows: Sequence[Row],
    contents: Mapping[str, str],
    limits: ExtractConfig,
    folder: Path,
) -> tuple[list[Heard], list[Refusal]]:
    """Decode every recording, leaving its FLAC in `folder`."""

    def listen(row: Row) -> Heard | Refusal:
        try:
            content = lake.read("landing", partition, row.path)
        except FileNotFoundError:
            raise TryAgain(_being_written(partition)) from None
        source_digest = store.digest_bytes(content)
        if source_digest != contents.get(row.path):
            raise TryAgain(_being_written(partition))
        try:
            audio = decode(
                content,
                min_seconds=limits.min_seconds,
                max_seconds=limits.max_seconds,
                silence_dbfs=limits.silence_dbfs,
                max_clipped=limits.max_clipped,
            )
        except AudioError as error:
            return Refusal(row.line, error.reason, error.detail, source_digest)
        file = f"{audio.digest}.flac"
        (folder / file).write_bytes(to_flac(audio.samples))
        facts = {name: value for name, value in vars(audio).items() if name not in {"samples", "digest"}}
        return Heard(row, facts | {"recording": audio.digest, "file": file, "source_digest": source_digest})

    # soundfile and torch leave the interpreter lock, so threads are enough and cost no start-up.
    with ThreadPoolExecutor(_THREADS) as pool:
        results = list(track(pool.map(listen, rows), f"extract {partition}", len(rows)))
    return [r for r in results if isinstance(r, Heard)], [r for r in results if isinstance(r, Refusal)]


def _summary(accepted: Sequence[Heard], refused: Sequence[Refusal], warnings: Sequence[str]) -> dict[str, Any]:
    return {
        "delivered": len(accepted) + len(refused),
        "accepted": len(accepted),
        "refused": len(refused),
        "reasons": dict(sorted(Counter(refusal.reason for refusal in refused).items())),
        "controls": sum(h.row.label == 0 for h in accepted),
        "patients": sum(h.row.label == 1 for h in accepted),
        "subjects": len({h.row.subject for h in accepted}),
        "splits": dict(sorted(Counter(str(h.row.split) for h in accepted).items())),
        "audio_seconds": round(sum(h.facts["seconds"] for h in accepted), 3),
        "warnings": list(warnings),
    }


def _too_few(partition: str, summary: Mapping[str, Any], limits: ExtractConfig) -> str:
    accepted, delivered = summary["accepted"], summary["delivered"]
    if accepted >= limits.min_accepted and accepted >= limits.min_accepted_fraction * delivered:
        return ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in summary["reasons"].items())
    return (
        f"landing/{partition}: only {accepted} of {delivered} recordings are good (at least {limits.min_accepted} and "
        f"{limits.min_accepted_fraction:.0%} are needed); refused: {reasons or 'none'}; "
        f"see quarantine/{partition}/refused.csv in the lake"
    )


def _quarantine(
    lake: Lake,
    partition: str,
    identity: str,
    inputs: Mapping[str, str],
    refused: Sequence[Refusal],
    summary: Mapping[str, Any],
) -> None:
    def work(folder: Path) -> dict[str, Any]:
        with (folder / "refused.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("line", "reason", "detail", "digest"))
            writer.writerows((r.line, r.reason, r.detail, r.digest) for r in refused)
        return dict(summary)

    perform("extract", identity, lake.fs, lake.path("quarantine", partition), work, inputs)


def _refused_before(lake: Lake, partition: str, identity: str) -> None:
    """A partition refused as a whole stays refused while nothing has changed: say so without decoding again."""
    report = store.read_report(lake.fs, lake.path("quarantine", partition))
    if report and report.get("fingerprint") == identity and report["summary"].get("message"):
        raise BadInput(report["summary"]["message"])
