"""Where the sound is: uploads under way in files of this machine, finished recordings below SPIRA_APP_AUDIO."""

from contextlib import suppress
from pathlib import Path

import fsspec

from spira_train.store import digest_bytes, digest_file, put


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
        return digest_file(file)
    except FileNotFoundError:
        return digest_bytes(b"")


def keep(audio: str, path: str, file: Path) -> None:
    """Put a finished upload below `audio`: whole or not at all, and on the disk before this returns."""
    fs, root = fsspec.core.url_to_fs(audio)
    put(fs, f"{root}/{path}", file.read_bytes())


def read(audio: str, path: str) -> bytes:
    """A finished recording; raises `FileNotFoundError` where it was deleted."""
    fs, root = fsspec.core.url_to_fs(audio)
    return bytes(fs.cat_file(f"{root}/{path}"))


def delete(audio: str, path: str) -> None:
    """Forget a recording; one that is gone is no mistake."""
    fs, root = fsspec.core.url_to_fs(audio)
    with suppress(FileNotFoundError):
        fs.rm_file(f"{root}/{path}")
