"""The landing area: what collection delivered for one day, read and never changed.

`metadata.csv` comes in the published SPIRA form (`file_path,class,sexo,idade,nivel_falta_de_ar`), with further
optional columns, or in the minimal form `file_path,class`. Each row becomes a `Row` or a `Refusal`; none is lost.
A file with columns that name people is refused as a whole: personal data must not enter the lake.
"""

import os
import posixpath
import re
import unicodedata
from dataclasses import dataclass

from fsspec.implementations.local import LocalFileSystem

from spira_train import table
from spira_train.outcome import BadInput, NothingToDo
from spira_train.split import SPLITS, Split, pseudonym
from spira_train.store import Lake, digest_bytes, digest_json

METADATA = "metadata.csv"
NEEDED = ("file_path", "class")
OPTIONAL = ("sexo", "idade", "nivel_falta_de_ar", "subject", "site", "device", "cause", "spo2", "split")
# Columns of SPIRA's exports and collection forms, and their usual names; compared as bare lower-case letters.
PERSONAL = frozenset(
    """
    nome name fullname nomecompleto nomepaciente patientname nomedamae telefone telefoneorigem phone phonenumber celular
    whatsapp pacienterghc rghc rgh rg patientrgh prontuario cpf cns endereco address enderecoip ip ipaddress useragent
    email nascimento datanascimento datadenascimento birthdate dateofbirth
    """.split()  # noqa: SIM905 (a list of 30 quoted words reads worse)
)
_SPLIT_NAMES: dict[str, Split] = {name: name for name in SPLITS} | {"eval": "validation", "val": "validation"}
_SEX = {"m": "M", "masculino": "M", "male": "M", "f": "F", "feminino": "F", "female": "F"}
_ABSENT = {"", "na", "n/a", "nan", "null", "none", "-"}
# SPIRA's controls, <uuid>_<prompt>.wav: one donor speaks up to three prompts.
_CONTROL = re.compile(r"(?:.*/)?controle/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})_\d+\.\w+", re.IGNORECASE)
_PLACE = re.compile(r"[A-Za-z]:|\w+:/")  # a Windows drive or a URI
_RECORDING = re.compile(r"\.(wav|flac|mp3|ogg|opus)$", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One recording as its metadata describe it; what is absent or unreadable is None."""

    line: int  # of metadata.csv, counted from 1
    path: str  # relative to the partition's folder
    subject: str  # pseudonym
    label: int  # 0 control, 1 patient
    split: Split | None = None
    sex: str | None = None  # M, F
    age: int | None = None  # years
    dyspnoea: int | None = None  # 0..5
    site: str | None = None
    device: str | None = None
    cause: str | None = None
    spo2: float | None = None  # %


@dataclass(frozen=True)
class Refusal:
    """A recording that is not taken: its line of metadata.csv, a machine word, and why; never a file name."""

    line: int
    reason: str
    detail: str
    digest: str = ""  # SHA-256 of the delivered bytes, where there are any


@dataclass(frozen=True)
class Delivery:
    """A partition's metadata: `len(rows) + len(refusals)` recordings were delivered."""

    rows: tuple[Row, ...]
    refusals: tuple[Refusal, ...]
    warnings: tuple[str, ...]


def sizes(lake: Lake, partition: str) -> dict[str, int]:
    """Size in bytes of every visible file of a landed partition, by relative path."""
    root = lake.path("landing", partition)
    lake.fs.invalidate_cache()
    found = {path[len(root) + 1 :]: info["size"] for path, info in lake.fs.find(root, detail=True).items()}
    return {name: found[name] for name in sorted(found) if not any(p.startswith(".") for p in name.split("/"))}


def landing_digest(lake: Lake, partition: str) -> tuple[str, dict[str, str]]:
    """Digest of a landed partition, and the digest of each of its files by relative path."""
    files = {name: digest_bytes(lake.read("landing", partition, name)) for name in sizes(lake, partition)}
    return digest_json(files), files


def read(lake: Lake, partition: str, salt: str) -> Delivery:
    """Read a partition's metadata; `salt` hides the subjects' names.

    Raises `NothingToDo` where no recording is listed, `BadInput` where the file cannot be used as a whole.
    """
    name = f"landing/{partition}/{METADATA}"
    try:
        lines = table.read(lake.read("landing", partition, METADATA), name)
    except FileNotFoundError:
        raise BadInput(f"{name}: not found; deliver it with the recordings (columns: file_path,class)") from None
    if not lines:
        raise NothingToDo(f"{name}: empty")
    header, warnings = _header(lines[0][1], name)
    if not lines[1:]:
        raise NothingToDo(f"{name}: lists no recording")
    present = set(sizes(lake, partition))
    rows: list[Row] = []
    refusals: list[Refusal] = []
    for line, cells in table.by_column(lines[1:], header):
        found = _row(line, cells, salt)
        if isinstance(found, Row):
            found = _located(found, lake, partition, present)
        if isinstance(found, Row):
            rows.append(found)
        else:
            refusals.append(found)
    spare = len(present - {row.path for row in rows} - {METADATA})
    if spare:
        warnings.append(f"{name}: {spare} of the delivered files are not listed and were left out")
    return Delivery(tuple(rows), tuple(refusals), tuple(warnings))


def speaker(path: str) -> str:
    """Who speaks, where nobody says so: one donor a UUID among SPIRA's controls, else each file is somebody's own.

    >>> speaker("controle/0B8D97CE-48A4-4D7B-9C63-0DA2D1F2B1F0_2.wav")
    '0b8d97ce-48a4-4d7b-9c63-0da2d1f2b1f0'
    """
    control = _CONTROL.fullmatch(path)
    return control[1].lower() if control else path


def _header(cells: list[str], name: str) -> tuple[list[str], list[str]]:
    """The column names in their plain form, and warnings about those unknown."""
    header = [re.sub(r"[\s-]+", "_", cell.lower()) for cell in cells]
    if _RECORDING.search(cells[0]):
        raise BadInput(
            f"{name}: has no header (line 1 is a recording), so the class is unknown; "
            "add the first line `file_path,class` and the class (0 control, 1 patient) of each recording"
        )
    personal = [cell for cell in cells if _letters(cell) in PERSONAL]
    if personal:
        raise BadInput(f"{name}: holds personal data; remove column {', '.join(personal)} and deliver it again")
    missing = [column for column in NEEDED if column not in header]
    if missing:
        raise BadInput(
            f"{name}: column {', '.join(missing)} is missing; found: {', '.join(cells)}; "
            f"needed: {', '.join(NEEDED)}; optional: {', '.join(OPTIONAL)}"
        )
    twice = sorted({column for column in header if column and header.count(column) > 1})
    if twice:
        raise BadInput(f"{name}: column {', '.join(twice)} appears twice; keep one")
    unknown = [column for column in header if column and column not in NEEDED + OPTIONAL]
    return header, [f"{name}: column {column} is not known and was ignored" for column in unknown]


def _letters(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text.lower())
    return "".join(char for char in plain if char.isascii() and char.isalnum())


def _row(line: int, cells: dict[str, str] | None, salt: str) -> Row | Refusal:
    if cells is None:
        return Refusal(line, "bad_value", "more cells than columns; quote values that hold the separator")
    cell = {column: None if text.lower() in _ABSENT else text for column, text in cells.items()}
    if not cell["file_path"]:
        return Refusal(line, "bad_value", "file_path is empty")
    path = posixpath.normpath(cell["file_path"].replace("\\", "/"))
    if path.startswith(("/", "../")) or path in {".", ".."} or _PLACE.match(path) or "\0" in path:
        return Refusal(line, "path_escapes", "file_path leaves the partition's folder; write it relative to that")
    label = _number(cell["class"], 0, 1)
    if label not in (0, 1):
        return Refusal(line, "unknown_label", "class is neither 0 (control) nor 1 (patient)")
    split = _SPLIT_NAMES.get((cell.get("split") or "").lower())
    if cell.get("split") and not split:
        # Falling back to the digest could train on a recording that was meant for the test set.
        return Refusal(line, "bad_value", f"split is none of {', '.join(SPLITS)}")
    return Row(
        line=line,
        path=path,
        subject=pseudonym(cell.get("subject") or speaker(path), salt),
        label=int(label),
        split=split,
        sex=_SEX.get((cell.get("sexo") or "").lower()),
        age=_integer(cell.get("idade"), 0, 120),
        dyspnoea=_integer(cell.get("nivel_falta_de_ar"), 0, 5),
        site=cell.get("site"),
        device=cell.get("device"),
        cause=cell.get("cause"),
        spo2=_number(cell.get("spo2"), 0, 100),
    )


def _located(row: Row, lake: Lake, partition: str, present: set[str]) -> Row | Refusal:
    if row.path not in present:
        return Refusal(row.line, "missing_file", "the recording was not delivered")
    if isinstance(lake.fs, LocalFileSystem):
        root = os.path.realpath(lake.path("landing", partition))
        if not os.path.realpath(f"{root}/{row.path}").startswith(root + os.sep):
            return Refusal(row.line, "path_escapes", "file_path is a link that leaves the partition's folder")
    return row


def _number(text: str | None, low: float, high: float) -> float | None:
    try:
        value = float((text or "").replace(",", "."))
    except ValueError:
        return None
    return value if low <= value <= high else None


def _integer(text: str | None, low: int, high: int) -> int | None:
    value = _number(text, low, high)
    return int(value) if value is not None and value == int(value) else None
