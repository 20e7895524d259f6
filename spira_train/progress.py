"""Progress of long work: a bar on a terminal, plain lines in a log. Always on stderr; stdout is for results."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
LINE_SECONDS = 10.0


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yield `items`, telling how far the work is."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            yield from bar.track(items, total=total, description=label)
        return
    last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            say(f"{label}: {done} of {total}")
    say(f"{label}: {total} of {total}, done")


def say(line: str) -> None:
    """One plain line for whoever watches."""
    print(line, file=sys.stderr, flush=True)
