"""The trail: who did what, one JSON line each, never a patient's data."""

from datetime import UTC, datetime
from pathlib import Path

from serve.gateway import files

VARIABLE, FOLDER, NAME = "SPIRA_TRAIL", Path("var/trail"), "trail.jsonl"


def note(file: Path, who: str, what: str, **facts: str | int | float | bool | None) -> None:
    """Append {time, who, what, ...}. facts: ids and counts, nothing that says anything of a patient.

    Raises `OSError` where it cannot be written: what must leave a trace is not done without one.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.append(file, {"time": datetime.now(UTC).isoformat(), "who": who, "what": what, **facts})
