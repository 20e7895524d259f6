"""Where the sound is: uploads under way in files of this machine, finished recordings below SPIRA_APP_AUDIO."""

import hashlib
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem


def spool(home: Path, id: str) -> Path:
    """The file into which an upload grows; its size is the offset."""
    return home / "uploads" / id


def offset(file: Path) -> int:
    """How many bytes of an upload have arrived."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def digest(file: Path) -> str:
    """SHA-256 in hex; of nothing where there is no file."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return hashlib.sha256().hexdigest()


def keep(audio: str, path: str, file: Path) -> None:
    """Put a finished upload below `audio`: whole or not at all, and on the disk before this returns."""
    fs, root = fsspec.core.url_to_fs(audio)
    if not isinstance(fs, LocalFileSystem):
        fs.put_file(str(file), f"{root}/{path}")
        return
    target = Path(root, path)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as stream:
            with file.open("rb") as arrived:
                shutil.copyfileobj(arrived, stream, 2**20)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(audio: str, path: str) -> bytes:
    """A finished recording; raises `FileNotFoundError` where it was deleted."""
    fs, root = fsspec.core.url_to_fs(audio)
    return bytes(fs.cat_file(f"{root}/{path}"))


def delete(audio: str, path: str) -> None:
    """Forget a recording; one that is gone is no mistake."""
    fs, root = fsspec.core.url_to_fs(audio)
    with suppress(FileNotFoundError):
        fs.rm_file(f"{root}/{path}")
