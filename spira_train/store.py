"""The lake and the run folders: the one module that writes to them.

A folder is *finished* when its `report.json` stands in it. It is written beside its destination and renamed when
complete, so no reader ever sees half a result. Lake paths go through fsspec: `file://` today, `s3://` tomorrow
(there the report is uploaded last, since object stores cannot rename).
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from spira_train.outcome import BadInput, TryAgain

REPORT = "report.json"
CLOSED = "closed.json"  # in collection/<day>: the day is over and was handed to training
_KEY = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class Lake:
    """The data lake behind `uri` (a path or an fsspec URI); see docs/lake.md for its folders."""

    uri: str

    @cached_property
    def _located(self) -> tuple[fsspec.AbstractFileSystem, str]:
        fs, root = fsspec.core.url_to_fs(self.uri)
        return fs, root.rstrip("/")

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        return self._located[0]

    def path(self, *parts: str) -> str:
        """The lake's own path of `parts`, for its file system."""
        return "/".join([self._located[1], *parts])

    def exists(self, *parts: str) -> bool:
        return bool(self.fs.exists(self.path(*parts)))

    def read(self, *parts: str) -> bytes:
        return bytes(self.fs.cat_file(self.path(*parts)))

    def folders(self, *parts: str) -> list[str]:
        """Names of the visible folders under `parts`, sorted; empty where there is none."""
        if not self.exists(*parts):
            return []
        found = self.fs.ls(self.path(*parts), detail=True)
        names = (entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "directory")
        return sorted(name for name in names if not name.startswith("."))

    def partitions(self, kind: str = "landing") -> list[str]:
        """Partition keys (`YYYY-MM-DD`) under `kind`, oldest first."""
        return [name for name in self.folders(kind) if _KEY.fullmatch(name)]

    def landed(self) -> list[str]:
        """The partitions of landing that are complete, oldest first: all but the days still open to the collection."""
        open_ = {
            day
            for day in self.partitions("collection")
            if self.exists("collection", day, "events") and not self.exists("collection", day, CLOSED)
        }
        return [day for day in self.partitions() if day not in open_]

    def files(self, *parts: str) -> list[str]:
        """Paths of all visible files under `parts`, relative to it, sorted."""
        root = self.path(*parts)
        found = (path[len(root) + 1 :] for path in self.fs.find(root))
        return sorted(path for path in found if not any(p.startswith(".") for p in path.split("/")))

    def check(self) -> None:
        """Raise `BadInput` unless this is a lake with a landing area that holds a partition."""
        if not self.exists():
            raise BadInput(f"lake {self.uri}: not found; create one with `spira-train simulate --lake {self.uri}`")
        if not self.partitions():
            raise BadInput(
                f"lake {self.uri}: empty; recordings are expected under landing/YYYY-MM-DD/ with a metadata.csv"
            )


def local_lake(folder: Path) -> tuple[LocalFileSystem, str]:
    """The (file system, path) pair of a plain local folder, for `publish` and `read_report`."""
    return LocalFileSystem(), str(Path(folder).absolute())


def read_report(fs: fsspec.AbstractFileSystem, folder: str) -> dict[str, Any] | None:
    """The report of a finished folder, or None where there is none."""
    try:
        report = json.loads(fs.cat_file(f"{folder}/{REPORT}"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return report if isinstance(report, dict) else None


@contextmanager
def publish(fs: fsspec.AbstractFileSystem, destination: str) -> Iterator[Path]:
    """Yield an empty folder to write into; when the block ends well, it becomes `destination`.

    On an error, or a kill, the destination stays as it was. What an earlier kill left behind is swept away.
    """
    local = isinstance(fs, LocalFileSystem)
    parent = Path(destination).parent if local else Path(tempfile.gettempdir())
    name = destination.rpartition("/")[2]
    with disk_errors(destination):
        parent.mkdir(parents=True, exist_ok=True)
        staging = parent / f".{name}.{uuid.uuid4().hex[:12]}.partial"
        with alone(parent):
            _sweep([*parent.glob(f".{name}.*.partial"), *parent.glob(f".{name}.*.old")])
            staging.mkdir()
            # The lock says that the writer lives; the kernel drops it with the process.
            lock = os.open(staging, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with disk_errors(destination):
            yield staging
            if local:
                _swap(staging, Path(destination))
            else:
                _upload(fs, staging, destination)
    finally:
        os.close(lock)
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """Yield an empty folder of the system's temporary folder, closed to other users and gone after the block.

    What killed holders of the same prefix left behind is swept away.
    """
    new = Path(tempfile.mkdtemp(prefix=f".{prefix}"))
    lock = os.open(new, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    # It gets the name that is swept only now: nobody finds it without its lock.
    folder = new.rename(new.with_name(new.name[1:]))
    try:
        _sweep(left for left in folder.parent.glob(prefix + "?" * 8) if left != folder)
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def write_atomic(file: Path, content: bytes) -> None:
    """Write `file` so that a reader sees the old or the new content, never a part; a power cut takes nothing back."""
    staging = file.with_name(f".{file.name}.{uuid.uuid4().hex[:12]}.partial")
    with disk_errors(str(file)):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with staging.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            staging.replace(file)
        finally:
            staging.unlink(missing_ok=True)
        sync(file.parent)


def put(fs: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    """Write a file of a lake, whole or not at all; an object store puts every file in one piece."""
    if isinstance(fs, LocalFileSystem):
        write_atomic(Path(path), content)
    else:
        fs.pipe_file(path, content)


def sync(place: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut."""
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(place: str) -> Iterator[None]:
    """Turn a full or read-only disk into one clear message."""
    try:
        yield
    except OSError as error:
        # numpy tells that it could write only a part of an array, and not why: a full disk is what leaves parts
        part = error.errno is None and str(error).endswith(" written")
        if part or error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TryAgain(f"{place}: no space left on the disk; free some and run again. Nothing was lost.") from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise BadInput(
                f"{place}: not writable ({error.strerror}); give this user the right to write there"
            ) from None
        raise


def digest_bytes(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def digest_file(file: Path) -> str:
    """SHA-256 of a local file, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical form."""
    return digest_bytes(canonical_json(value))


def canonical_json(value: Any) -> bytes:
    """JSON bytes that are the same for the same value; refuses NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest_folder(folder: Path) -> dict[str, str]:
    """Digest of every visible file under `folder` but its report, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != REPORT)
    return {p.relative_to(folder).as_posix(): digest_file(p) for p in files}


def _swap(staging: Path, destination: Path) -> None:
    _sync(staging)
    retired = staging.with_suffix(".old")
    # Two runs may publish the same partition at once: one after the other, then; the bytes are the same.
    with alone(destination.parent):
        if destination.exists():
            destination.rename(retired)
        staging.rename(destination)
        shutil.rmtree(retired, ignore_errors=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the door of a folder: whoever else publishes there waits."""
    door = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(door, fcntl.LOCK_EX)
        yield
    finally:
        os.close(door)


def _sync(folder: Path) -> None:
    # Without this a power cut could leave a renamed folder with empty files.
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def _upload(fs: fsspec.AbstractFileSystem, staging: Path, destination: str) -> None:
    files = sorted(p for p in staging.rglob("*") if p.is_file())
    stale = set(fs.find(destination)) if fs.exists(destination) else set()
    if f"{destination}/{REPORT}" in stale:
        fs.rm_file(f"{destination}/{REPORT}")
    for file in sorted(files, key=lambda p: p.name == REPORT):
        target = f"{destination}/{file.relative_to(staging).as_posix()}"
        fs.pipe_file(target, file.read_bytes())
        stale.discard(target)
    for path in stale - {f"{destination}/{REPORT}"}:
        fs.rm_file(path)


def _sweep(remains: Iterable[Path]) -> None:
    for left in remains:
        try:
            handle = os.open(left, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:
            pass  # its writer is alive
        finally:
            os.close(handle)
