"""Bulk import: a data set in SPIRA's published form, or any CSV with recordings, from a folder or a zip."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from collect import ledger
from collect.facts import NUMBERS, Facts, Wrong, bare, read
from collect.hearing import Unusable
from collect.landing import settle
from collect.ledger import Declined
from collect.receive import label, receive
from collect.source import Gone, Source, opened
from serve.gateway.settings import Mistake
from spira_train import table
from spira_train.landing import PERSONAL, speaker
from spira_train.outcome import BadInput
from spira_train.progress import track
from spira_train.store import Lake

Consent = Literal["recorded", "training"]
CSV_BYTES = 64 << 20
# SPIRA's columns, ours, and other usual names, as bare letters -> field of `Facts`.
_COLUMNS = {name.replace("_", ""): name for name in Facts.model_fields} | {
    "filepath": "file_path", "audiopath": "file_path", "class": "label", "classe": "label", "sexo": "sex",
    "idade": "age", "nivelfaltadear": "dyspnoea", "saturacaooxigenio": "spo2", "genero": "sex", "gender": "sex",
}  # fmt: skip
_LABELS = {"1": "patient", "patient": "patient", "paciente": "patient", "0": "control", "control": "control"}
_LABELS |= {"controle": "control"}
_SEX = {"m": "M", "masculino": "M", "male": "M", "f": "F", "feminino": "F", "female": "F"}
_YES = {"1": True, "true": True, "yes": True, "sim": True, "0": False, "false": False, "no": False, "nao": False}
_SPLITS = {"train": "train", "eval": "validation", "val": "validation", "validation": "validation", "test": "test"}
_ABSENT = {"", "na", "n/a", "nan", "null", "none", "-"}
_METADATA = re.compile(r"metadata(?:_(train|eval|val|validation|test))?\.csv", re.IGNORECASE)


@dataclass
class Result:
    """What became of the rows. refused: (CSV, line, reason, detail), never a file's name or a value."""

    added: int = 0
    again: int = 0
    waiting: int = 0
    refused: list[tuple[str, int, str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    days: set[str] = field(default_factory=set)

    @property
    def reasons(self) -> dict[str, int]:
        """Reason -> how many rows."""
        return dict(Counter(reason for _, _, reason, _ in self.refused).most_common())


@dataclass(frozen=True)
class _Line:
    csv: str
    number: int
    cells: dict[str, str] | None  # by field; None: more cells than columns
    split: str | None


def run(
    lake: Lake, key: bytes, path: Path, *, who: str, day: str | None = None, consent: Consent | None = None, limit: int
) -> Result:
    """Take in every recording that the CSVs at `path` list; a kill costs nothing, a second run changes nothing.

    consent: what everybody in it agreed to, where no column says so. limit: bytes of a recording. Raises `Mistake`
    where a CSV cannot be used as a whole; then nothing has been taken in.
    """
    result = Result()
    with opened(path) as (source, only):
        lines = [line for name in _chosen(source, only) for line in _lines(source, name, result)]
        try:
            for line in track(lines, f"import {path.name}", len(lines)):
                try:
                    _take(lake, key, source, line, who, day, consent, limit, result)
                except (Wrong, Unusable, Declined, Gone) as error:
                    said = str(error) if isinstance(error, Wrong) else error.detail
                    result.refused.append((line.csv, line.number, error.reason, said))
        finally:
            for changed in sorted(result.days):
                settle(lake, changed)
    return result


def labels_from(lake: Lake, file: Path, *, who: str) -> Result:
    """Labels by a CSV with the columns id, label and perhaps why."""
    result = Result()
    with opened(file) as (source, only):
        for line in _rows(
            source, only, ("id", "label"), {"id": "id", "label": "label", "class": "label", "why": "why"}, result
        ):
            try:
                cells = line.cells or {}
                if (value := _LABELS.get(cells.get("label", "").lower())) is None:
                    raise Wrong("label", "unknown_label", "is neither patient (1) nor control (0)")
                given = label(lake, cells["id"].lower(), value, who, cells.get("why", ""))  # type: ignore[arg-type]
            except (Wrong, Declined) as error:
                result.refused.append((line.csv, line.number, error.reason, str(error)))
                continue
            result.again += given.again
            result.added += not given.again
            result.days.add(given.day)
    for changed in sorted(result.days):
        settle(lake, changed)
    return result


def _take(
    lake: Lake, key: bytes, source: Source, line: _Line, who: str, day: str | None, consent: Consent | None, limit: int,
    result: Result,
) -> None:  # fmt: skip
    if line.cells is None:
        raise Gone("bad_value", "more cells than columns; quote values that hold the separator")
    cells = dict(line.cells)
    if not (path := cells.pop("file_path", "")):
        raise Gone("bad_value", "file_path is empty")
    facts = read(_facts(cells, path.replace("\\", "/"), line.split, consent))
    kept = receive(lake, key, source.read(path, limit), facts, who, day=day)
    result.days.add(kept.day)
    if kept.again and facts.label and (known := ledger.find(lake, kept.id)) and known.label != facts.label:
        raise Declined("other_label", "came before with another label; correct it with `label` or `labels-from`")
    result.added += not kept.again
    result.again += kept.again
    result.waiting += kept.state == "waiting"


def _facts(cells: dict[str, str], path: str, split: str | None, consent: Consent | None) -> dict[str, Any]:
    """A row's cells as fields; what has another spelling is translated, what is wrong stays for `Facts` to refuse."""
    fields: dict[str, Any] = {name: text for name, text in cells.items() if text.lower() not in _ABSENT}
    if consent:
        fields = {"consent": True, "consent_training": consent == "training"} | fields
    elif "consent" not in fields:
        raise Wrong("consent", "consent", "no column says so: add one, or say --consent for all")
    for name in ("consent", "consent_training"):
        if isinstance(text := fields.get(name), str):
            fields[name] = _YES.get(bare(text), text)
    for name, words in (("label", _LABELS), ("sex", _SEX), ("split", _SPLITS)):
        if name in fields:
            fields[name] = words.get(fields[name].lower(), fields[name])
    if "label" in fields and fields["label"] not in _LABELS.values():
        raise Wrong("label", "unknown_label", "is neither 0 (control) nor 1 (patient)")
    for name in ("age", "dyspnoea", "spo2"):
        if name in fields:
            fields[name] = fields[name].replace(",", ".").removesuffix(".0")
    if split:
        fields.setdefault("split", split)
    if "subject" not in fields and not any(bare(name) in NUMBERS for name in fields):
        fields["subject"] = speaker(path)
    return fields


def _chosen(source: Source, only: str) -> list[str]:
    """The CSVs to read: the one that is meant; else those of the splits; else metadata.csv."""
    if only:
        return [only]
    found = {name: match for name in source.top if (match := _METADATA.fullmatch(name))}
    if not found:
        raise Mistake(
            f"{source.name}: holds neither metadata.csv nor metadata_train.csv, metadata_eval.csv, metadata_test.csv"
        )
    return sorted(name for name, match in found.items() if match[1]) or sorted(found)


def _lines(source: Source, name: str, result: Result) -> list[_Line]:
    return list(_rows(source, name, ("file_path",), _COLUMNS, result))


def _rows(
    source: Source, name: str, needed: tuple[str, ...], columns: dict[str, str], result: Result
) -> Iterator[_Line]:
    """The rows of a CSV by field; raises `Mistake` where it cannot be used as a whole."""
    try:
        lines = table.read(source.read(name, CSV_BYTES), name)
    except (Gone, BadInput) as error:
        raise Mistake(f"{source.name}: {error}") from None
    if not lines:
        raise Mistake(f"{name}: empty")
    header = [columns.get(bare(cell), cell if bare(cell) in NUMBERS else "") for cell in lines[0][1]]
    if personal := [cell for cell in lines[0][1] if bare(cell) in PERSONAL - NUMBERS]:
        raise Mistake(f"{name}: holds personal data; remove column {', '.join(personal)}. Nothing was taken in")
    if missing := [field for field in needed if field not in header]:
        raise Mistake(f"{name}: column {', '.join(missing)} is missing; found: {len(header)} others")
    if twice := sorted({field for field in header if field and header.count(field) > 1}):
        raise Mistake(f"{name}: {', '.join(twice)} is in two columns; keep one")
    unknown = sum(not field for field in header)
    if unknown:
        result.warnings.append(f"{name}: {unknown} columns are not known and were left out")
    match = _METADATA.fullmatch(name)
    split = _SPLITS[match[1].lower()] if match and match[1] else None
    for number, cells in table.by_column(lines[1:], header):
        known = {field: text for field, text in cells.items() if field} if cells is not None else None
        yield _Line(name, number, known, split)
