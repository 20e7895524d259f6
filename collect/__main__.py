"""`python -m collect`: run the collection, take recordings in by hand or in bulk, correct labels, withdraw a subject.

Settings come from the environment (collect/settings.py). A running service and these commands may work side by side.
"""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from access import trail
from collect import imports, receive
from collect.facts import Wrong
from collect.facts import read as read_facts
from collect.hearing import Unusable
from collect.landing import settle
from collect.ledger import Declined
from collect.pseudonym import read_key
from collect.settings import Settings, read
from serve.gateway.settings import Mistake
from spira_train.outcome import StepError
from spira_train.store import Lake

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
Who = Annotated[str, typer.Option(help="On record as whoever did it: an account's name, not a person's")]
DayOption = Annotated[str, typer.Option(help="Partition, YYYY-MM-DD; empty: today")]
SHOWN = 20  # refused rows


@app.command()
def serve() -> None:
    """Run the service until SIGTERM."""
    import uvicorn

    import access.settings
    from collect.service import create

    settings = read(os.environ)
    # Uvicorn ends in order, and then gives the signal on: an end that was asked for is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING, stream=sys.stderr)
    uvicorn.run(
        create(settings, access.settings.read(os.environ)),
        host=settings.host,
        port=settings.port,
        access_log=False,  # paths hold ids, and addresses are nobody's business
        server_header=False,
        proxy_headers=False,
        log_config=None,
        backlog=2048,
        timeout_graceful_shutdown=int(settings.body_seconds) + 1,
    )


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="WAV, FLAC, OGG or MP3")],
    subject: Annotated[str, typer.Option(help="Whose voice; only its pseudonym is kept")],
    consent: Annotated[imports.Consent, typer.Option(help="What the person agreed to")],
    fact: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, as often as needed: age=63")] = None,
    day: DayOption = "",
    who: Who = "operator",
) -> None:
    """Take one recording in; prints its id."""
    settings = read(os.environ)
    fields: dict[str, Any] = dict(_pair(text) for text in fact or [])
    fields |= {"subject": subject, "consent": True, "consent_training": consent == "training"}
    try:
        content = file.read_bytes()
    except OSError as error:
        raise Mistake(f"{file}: cannot be read ({error.strerror})") from None
    if len(content) > settings.max_bytes:
        raise Mistake(f"{file}: more than {settings.max_bytes} bytes")
    lake, key = Lake(settings.lake), read_key(settings.pseudonym_key)
    kept = receive.receive(lake, key, content, read_facts(fields), who, day=_day(day))
    _note(settings, who, "received", id=kept.id, day=kept.day)
    settle(lake, kept.day)
    said = "came before, nothing was changed" if kept.again else kept.state
    print(f"{kept.day}: {said}", file=sys.stderr)
    print(kept.id)


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="A folder such as SPIRA_Dataset_V2, a .csv, or a .zip")],
    consent: Annotated[
        imports.Consent | None, typer.Option(help="What everybody in it agreed to, where no column says so")
    ] = None,
    day: DayOption = "",
    who: Who = "operator",
) -> None:
    """Take in all recordings that its CSVs list. Ends with 1 where rows were refused; a second run changes nothing."""
    settings = read(os.environ)
    lake, key = Lake(settings.lake), read_key(settings.pseudonym_key)
    found = imports.run(lake, key, path, who=who, day=_day(day), consent=consent, limit=settings.max_bytes)
    _note(settings, who, "imported", added=found.added, again=found.again, refused=len(found.refused))
    _tell(found, {"taken in": found.added, "came before": found.again, "of these waiting": found.waiting})


@app.command("labels-from")
def labels_from(file: Annotated[Path, typer.Argument(help="CSV: id,label[,why]")], who: Who = "operator") -> None:
    """Enter labels in bulk: late ones, or corrections."""
    settings = read(os.environ)
    found = imports.labels_from(Lake(settings.lake), file, who=who)
    _note(settings, who, "labelled_from", added=found.added, again=found.again, refused=len(found.refused))
    _tell(found, {"labels entered": found.added, "were so already": found.again})


@app.command()
def label(
    id: Annotated[str, typer.Argument(help="Of the recording, 32 hex digits")],
    value: Annotated[str, typer.Argument(metavar="patient|control")],
    why: Annotated[str, typer.Option(help="Without names")] = "",
    who: Who = "operator",
) -> None:
    """Say, or correct, what a recording is."""
    settings = read(os.environ)
    if value not in ("patient", "control"):
        raise Mistake(f"{value}: a label is patient or control")
    lake = Lake(settings.lake)
    kept = receive.label(lake, id, value, who, why)  # type: ignore[arg-type]
    _note(settings, who, "labelled", id=kept.id, label=value)
    settle(lake, kept.day)
    print(f"{kept.day}: {kept.state}")


@app.command()
def withdraw(
    subject: Annotated[str, typer.Argument(help="As given with the recordings, or the pseudonym")],
    who: Who = "operator",
) -> None:
    """Take a subject's recordings out of the lake for ever, and all that was derived of their days."""
    settings = read(os.environ)
    gone = receive.withdraw(Lake(settings.lake), read_key(settings.pseudonym_key), subject, who)
    _note(settings, who, "withdrawn", subject=gone.subject, recordings=gone.recordings)
    print(f"{gone.subject}: {gone.recordings} recordings of {len(gone.days)} days are gone")
    if not gone.recordings:
        print("No recording of this subject was known; look at the spelling.", file=sys.stderr)


@app.command()
def days() -> None:
    """How much came on each day."""
    from collect.days import Day, overview

    table = Table(*Day.model_fields, box=None, header_style="dim", padding=(0, 2, 0, 0))
    for one in overview(Lake(read(os.environ).lake)):
        table.add_row(*(str(value) for value in one.model_dump().values()))
    Console(highlight=False).print(table)


def _tell(found: imports.Result, counts: dict[str, int]) -> None:
    """The table at the end, and the refused rows by line; ends with 1 where there are any."""
    errors = Console(stderr=True, highlight=False)
    for warning in found.warnings:
        errors.print(warning, markup=False)
    for csv, line, reason, detail in found.refused[:SHOWN]:
        errors.print(f"{csv}, line {line}: {reason}: {detail}", markup=False, soft_wrap=True)
    if len(found.refused) > SHOWN:
        errors.print(f"and {len(found.refused) - SHOWN} more rows were refused")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, count in (counts | {f"refused, {reason}": count for reason, count in found.reasons.items()}).items():
        table.add_row(name, str(count))
    Console(highlight=False).print(table)
    if found.refused:
        raise typer.Exit(1)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise Mistake("--fact: write NAME=VALUE, such as age=63")
    return name.strip(), value.strip()


def _day(text: str) -> str | None:
    try:
        return receive.valid_day(text) if text else None
    except ValueError as error:
        raise Mistake(f"--day {error}") from None


def _note(settings: Settings, who: str, what: str, **facts: str | int) -> None:
    trail.note(settings.trail_file, who, what, **facts)


def main() -> None:
    """Every expected mistake is one line on stderr and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except (Mistake, Wrong, Unusable, Declined, StepError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except typer.TyperException as error:
        print(error.format_message() if hasattr(error, "format_message") else error, file=sys.stderr)
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
