"""Where an import reads from: a folder, or a zip, which is never unpacked. Only files that a CSV lists are read."""

import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from serve.gateway.settings import Mistake

MEMBERS = 100_000
TOTAL = 64 << 30  # bytes that a zip may unpack to
RATIO = 100  # times its own size; recordings hardly shrink
SMALL = 64 << 20  # below this no ratio does harm


class Gone(Exception):
    """A listed file that cannot be had: `reason` in a word, `detail` in a sentence without its name."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Source:
    """name: how messages call it. files: relative paths of its files at the top. read: bytes by relative path."""

    name: str
    top: tuple[str, ...]
    read: Callable[[str, int], bytes]


@contextmanager
def opened(path: Path) -> Iterator[tuple[Source, str]]:
    """(the source, the one CSV that is meant, or empty for those that it holds). Raises `Mistake`."""
    if path.is_dir():
        yield _folder(path), ""
    elif path.suffix.lower() == ".csv" and path.is_file():
        yield _folder(path.parent), path.name
    elif path.is_file() and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                yield _zip(path, archive), ""
        except (zipfile.BadZipFile, NotImplementedError):
            raise Mistake(f"{path}: a broken zip; make it again") from None
    else:
        raise Mistake(f"{path}: neither a folder, nor a .csv, nor a zip")


def _folder(root: Path) -> Source:
    real = root.resolve()

    def read(name: str, limit: int) -> bytes:
        file = real / _inside(name)
        if not file.resolve().is_relative_to(real):
            raise Gone("path_escapes", "a link that leaves the folder")
        try:
            with file.open("rb") as stream:
                return _limited(stream.read(limit + 1), limit)
        except (FileNotFoundError, NotADirectoryError):
            raise Gone("missing_file", "the recording is not there") from None
        except OSError as error:
            raise Gone("missing_file", f"the recording cannot be read ({error.strerror})") from None

    return Source(str(root), tuple(sorted(entry.name for entry in real.iterdir() if entry.is_file())), read)


def _zip(path: Path, archive: zipfile.ZipFile) -> Source:
    members = [member for member in archive.infolist() if not member.is_dir()]
    size = sum(member.file_size for member in members)
    if len(members) > MEMBERS or size > TOTAL or (size > SMALL and size > RATIO * max(path.stat().st_size, 1)):
        raise Mistake(f"{path}: would unpack to {size} bytes in {len(members)} files; that is no set of recordings")
    known: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        try:
            name = _inside(member.filename)
        except Gone:
            raise Mistake(f"{path}: holds a path that leaves it; nothing was read") from None
        if stat.S_ISLNK(member.external_attr >> 16):
            raise Mistake(f"{path}: holds a link; put the files themselves into it")
        if member.flag_bits & 1:
            raise Mistake(f"{path}: is encrypted; make it without a password")
        if name in known:
            raise Mistake(f"{path}: holds two files of one name")
        known[name] = member
    first = {PurePosixPath(name).parts[0] for name in known if "/" in name and not name.startswith("__MACOSX/")}
    bare = all("/" in name for name in known)
    root = f"{first.pop()}/" if bare and len(first) == 1 else ""  # the folder was zipped, not what is in it

    def read(name: str, limit: int) -> bytes:
        member = known.get(root + _inside(name))
        if member is None:
            raise Gone("missing_file", "the recording is not in the zip")
        try:
            with archive.open(member) as stream:
                return _limited(stream.read(limit + 1), limit)  # whatever its header says it would unpack to
        except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError):
            raise Gone("undecodable", "its place in the zip is broken") from None

    top = sorted(name[len(root) :] for name in known if name.startswith(root) and "/" not in name[len(root) :])
    return Source(str(path), tuple(top), read)


def _inside(name: str) -> str:
    """A relative path in its plain form; raises `Gone` where it leaves the source."""
    plain = PurePosixPath(name.replace("\\", "/"))
    if plain.is_absolute() or ".." in plain.parts or ":" in name or "\0" in name or not plain.parts:
        raise Gone("path_escapes", "a path that leaves the folder")
    return str(plain)


def _limited(content: bytes, limit: int) -> bytes:
    if len(content) > limit:
        raise Gone("too_large", f"more than {limit} bytes")
    return content
