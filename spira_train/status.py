"""What is served now, since when and why, and what was refused lately: asked of TorchServe and of MLflow."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from serve import torchserve
from serve.torchserve import Server
from spira_train import live as counted
from spira_train.outcome import TryAgain
from spira_train.registry import CHALLENGER, CHAMPION, PREVIOUS, Registry

REFUSALS, REASONS = 5, 2
_WHY = {"clean.auc": "clean AUC", "clean.accuracy": "clean accuracy", "ward_noise.accuracy": "ward noise accuracy"}


def gather(*, mlflow: str, server: Server, live: Path | None = None) -> dict[str, Any]:
    """What the two say. Where one is away, what is asked of it is missing, and `away` says so, a line each.

    `served`: the version that answers, or None. `named`: alias -> tags of its version, with its `number`. `refused`:
    see `Registry.refused`. `live`: how right the versions were on later diagnoses, where the app counts them.
    """
    facts: dict[str, Any] = {"away": [], "inference": server.inference, "live": counted.read(live) if live else {}}
    try:
        facts["served"] = torchserve.answering(server)
    except TryAgain as error:
        facts["away"].append(str(error))
    try:
        registry = Registry(mlflow)
        aliases, versions = registry.aliases(), registry.versions()
        named = {alias: versions[number].tags | {"number": number} for alias, number in aliases.items()}
        facts |= {"known": {known.tags.get("version") for known in versions.values()}, "named": named}
        facts["refused"] = registry.refused(REFUSALS)
    except TryAgain as error:
        facts["away"].append(str(error))
    return facts


def agreement(facts: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Whether MLflow's champion is what is served (None: cannot be said), and in words; where not, what heals it."""
    if "served" not in facts or "named" not in facts:
        return None, "whether MLflow and TorchServe agree cannot be said while one is away"
    served, champion = facts["served"], facts["named"].get(CHAMPION, {}).get("version")
    if served == champion:
        return True, "MLflow and TorchServe agree" if served else "nothing is served yet: no model has earned it so far"
    heals = "The DAG `spira_upkeep` mends it within five minutes, `spira-train reconcile` at once"
    if served is None:
        return False, f"MLflow's champion is {champion}, but TorchServe serves nothing. {heals}"
    if served not in facts["known"]:
        return False, (
            f"TorchServe serves {served}, which MLflow does not know; its champion is {champion or 'nobody'}. Somebody "
            f"put it there by hand. {heals}"
        )
    return False, f"TorchServe serves {served}, but MLflow's champion is {champion or 'nobody'}. {heals}"


def show(facts: Mapping[str, Any], console: Console, now: datetime | None = None) -> None:
    """Print `gather`'s facts."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(facts, now or datetime.now(UTC)):
        table.add_row(name, value)
    console.print(table)
    if refused := facts.get("refused"):
        console.print(Text("\nrefused lately", style="bold"), _refusals(refused), sep="\n")


def _rows(facts: Mapping[str, Any], now: datetime) -> Iterator[tuple[str, RenderableType]]:
    for line in facts["away"]:
        yield "away", Text(line, style="red")
    if "served" in facts:
        said = f"{facts['served']}, in its own words at {facts['inference']}" if facts["served"] else "nothing"
        yield "served", Text(said, style="green" if facts["served"] else "yellow")
    named = facts.get("named", {})
    for alias in (CHAMPION, PREVIOUS, CHALLENGER):
        if tags := named.get(alias):
            yield alias, Text(f"{tags['version']}, version {tags['number']} of MLflow's {tags['name']}")
            if "withdrawn" in tags:
                said = f"{alias} was trained on {tags['withdrawn']} recordings that were withdrawn since"
                yield "", Text(f"{said}; the next training leaves them out", style="yellow")
    agreed, words = agreement(facts)
    mark, style = {True: ("✓ ", "green"), False: ("✗ ", "bold red"), None: ("? ", "yellow")}[agreed]
    yield "", Text(mark + words, style=style)
    if tags := named.get(CHAMPION):
        yield "since", Text(_since(tags.get("promoted_at"), now))
        yield "why", Group(*map(Text, _why(tags)))
    if facts.get("live"):
        yield "live", Group(*map(Text, counted.lines(facts["live"])))
    if facts.get("refused") == []:
        yield "refused", Text("nothing so far", style="dim")


def _since(promoted_at: str | None, now: datetime) -> str:
    if not promoted_at:
        return "not on record"
    at = datetime.fromisoformat(promoted_at)
    minutes = int((now - at).total_seconds() // 60)
    age = (
        f"{minutes} min" if minutes < 120 else f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // 1440} days"
    )
    return f"{_moment(at)}, {age} ago"


def _why(tags: Mapping[str, str]) -> Iterator[str]:
    yield from (f"{words} {tags[name]}" for name, words in _WHY.items() if name in tags)
    if "checks" in tags:
        yield f"{tags['checks']} checks of the gate kept"
    if "approver" in tags:
        yield f"approved by {tags['approver']}, {_moment(datetime.fromisoformat(tags['approved_at']))}"
    else:
        yield "approved by the gate alone: no human was asked"


def _refusals(refused: list[dict[str, Any]]) -> Table:
    table = Table("partition", "when", "because", box=None, header_style="dim", padding=(0, 2, 0, 0))
    for one in refused:
        first, more = one["reasons"][:REASONS], len(one["reasons"]) - REASONS
        lines = [*first, *([f"and {more} more"] if more > 0 else [])] or ["its reasons are not on record"]
        table.add_row(one["partition"], _moment(one["at"]), Text("\n".join(lines)))
    return table


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
