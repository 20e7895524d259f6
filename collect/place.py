"""Writing into the lake: a file is there whole or not at all, and what was answered for survives a power cut.

On an object store a file is put in one piece anyway; there one collector at a time is assumed, since nothing there can
lock (docs/collection.md).
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from spira_train import store
from spira_train.store import Lake, alone, disk_errors, sync

AREA = "collection"
_doors: dict[str, threading.Lock] = {}


def is_local(lake: Lake) -> bool:
    """Whether the lake is a folder of this machine."""
    return isinstance(lake.fs, LocalFileSystem)


@contextmanager
def door(lake: Lake) -> Iterator[None]:
    """Whoever changes the collection holds this; the kernel opens it again for the next when a process dies."""
    if not is_local(lake):
        with _doors.setdefault(lake.uri, threading.Lock()):
            yield
        return
    area = Path(lake.path(AREA))
    with disk_errors(str(area)):
        area.mkdir(parents=True, exist_ok=True)
    with alone(area):
        yield


def put(lake: Lake, content: bytes, *parts: str) -> None:
    """Write a file; on a disk it is beside its name until it is complete, and synced with its folder."""
    store.put(lake.fs, lake.path(*parts), content)


def move(lake: Lake, source: tuple[str, ...], target: tuple[str, ...]) -> None:
    """Give a file another place; killed in between, an object store keeps both for the next `settle`."""
    if not is_local(lake):
        lake.fs.pipe_file(lake.path(*target), lake.read(*source))
        lake.fs.rm_file(lake.path(*source))
        return
    new = Path(lake.path(*target))
    with disk_errors(str(new.parent)):
        new.parent.mkdir(parents=True, exist_ok=True)
        Path(lake.path(*source)).replace(new)
        sync(new.parent)


def remove(lake: Lake, *parts: str) -> None:
    """Delete a file or a folder with all that is in it, where it is there."""
    path = lake.path(*parts)
    with disk_errors(path):
        if lake.exists(*parts):
            lake.fs.rm(path, recursive=True)
            if is_local(lake):
                sync(Path(path).parent)


def names(lake: Lake, *parts: str) -> list[str]:
    """Names of everything in a folder, hidden remains of a kill included, sorted; empty where there is no folder."""
    path = lake.path(*parts)
    if is_local(lake):
        try:
            return sorted(os.listdir(path))  # noqa: PTH208 - names alone, a third of the time
        except FileNotFoundError:
            return []
    lake.fs.invalidate_cache(path)
    if not lake.exists(*parts):
        return []
    return sorted(found.rstrip("/").rpartition("/")[2] for found in lake.fs.ls(path, detail=False))
