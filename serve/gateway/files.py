"""Small files that a running gateway reads again when they change, and lines that it appends."""

import json
import logging
import os
import uuid
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from serve.gateway.settings import Mistake

log = logging.getLogger("spira.gateway")
Content = TypeVar("Content", bound=BaseModel)


def read(file: Path, kind: type[Content]) -> Content:
    """What a JSON file holds; an empty `kind` where there is none. Raises `Mistake` naming file and field."""
    try:
        return kind.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return kind()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise Mistake(f"{file}: {where}{': ' if where else ''}{first['msg']}; mend it, or delete it") from None
    except OSError as error:
        raise Mistake(f"{file}: cannot be read ({error.strerror})") from None


def write(file: Path, content: BaseModel) -> None:
    """Replace a file, for its owner's eyes only; whoever reads it sees the old content or the new one."""
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial.touch(mode=0o600)
        partial.write_text(content.model_dump_json(indent=1, exclude_none=True) + "\n")
        partial.replace(file)
    except OSError as error:
        raise Mistake(f"{file}: cannot be written ({error.strerror})") from None
    finally:
        partial.unlink(missing_ok=True)


def append(file: Path, record: dict[str, Any]) -> None:
    """Add one JSON line. Opened each time, so that the file may be moved away under a running gateway."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, json.dumps(record).encode() + b"\n")
    finally:
        os.close(descriptor)


class Watched(Generic[Content]):
    """What a file holds now: read again when it changes. A mistake in it is logged, and the last good content stays."""

    def __init__(self, file: Path, kind: type[Content]) -> None:
        self.file, self.kind = file, kind
        self._seen = self._stamp()
        self._content = read(file, kind)

    def get(self) -> Content:
        """The content, at the cost of one `stat`."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._content = read(self.file, self.kind)
            except Mistake as mistake:
                log.error("%s (what it held before is still in force)", mistake)
        return self._content

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = self.file.stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino
