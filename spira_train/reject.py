"""A human's no to a blessed model, put on record: who, when, and that nothing was registered."""

from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from spira_train.config import Config
from spira_train.outcome import BadInput, Refused
from spira_train.registry import CHAMPION, Registry
from spira_train.store import local_lake, read_report
from spira_train.validate import run_of


def run(*, run: Path, config: Config, registry: Registry, by: str = "", at: str = "") -> NoReturn:
    """Tag the run in MLflow (`rejected`, `rejected_at`), then raise `Refused` with the same sentence.

    by: who said no; empty where nobody answered in time. at: when (ISO 8601); empty: now. The gate's verdict stays as
    it is: it blessed the model, and a person did not. Raises `BadInput` for a time that is none, and where nothing was
    validated.
    """
    report = read_report(*local_lake(run / "validate"))
    if report is None:
        raise BadInput(f"{run / 'validate'}: not finished; run `spira-train validate` first")
    try:
        when = datetime.fromisoformat(at).astimezone(UTC) if at else datetime.now(UTC)
    except ValueError:
        raise BadInput(f"--at is {at!r}; expected an ISO 8601 time") from None
    said = f"rejected by {by}" if by else "nobody approved it in time"
    run_id = run_of(registry, run, config, report)
    registry.note(run_id, {"rejected": said, "rejected_at": when.isoformat(timespec="seconds")}, {})
    number = registry.aliases().get(CHAMPION)
    served = f"{registry.versions()[number].tags['version']} goes on serving" if number else "nothing is served"
    raise Refused(f"{said}, {when:%Y-%m-%d %H:%M} UTC: nothing was registered, {served}")
