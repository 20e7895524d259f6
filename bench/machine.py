"""What a benchmark ran on, and one way to print its table."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table


def describe() -> str:
    """Processor, cores and versions in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    wanted = ("torch", "torchaudio", "numpy")
    versions = ", ".join(f"{package} {version(package)}" for package in wanted)
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
    """Print one table with the machine under it."""
    table = Table(*columns, title=title, title_justify="left", caption=describe() + (f"\n{note}" if note else ""))
    table.caption_justify = "left"
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=None if Console().is_terminal else 120).print(table)
