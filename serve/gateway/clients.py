"""Who may ask, and how often: `clients.json`. It holds the SHA-256 of each key; a key itself is shown once."""

import fcntl
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from limits import parse
from pydantic import AfterValidator, BaseModel, Field

from serve.gateway import files, settings
from serve.gateway.settings import Mistake

RATE = "60/minute"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


def _rate(text: str) -> str:
    try:
        limit = parse(text)
    except ValueError:
        limit = None
    if limit is None or limit.amount < 1:
        raise ValueError(f"{text!r} is no rate; write for instance 60/minute or 5/second")
    return text


class Client(BaseModel):
    """key: SHA-256 of the real one, in hex."""

    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    rate: Annotated[str, AfterValidator(_rate)] = RATE
    added: str = ""


class Clients(BaseModel):
    """What `clients.json` holds."""

    clients: dict[str, Client] = {}


def digest(key: str) -> str:
    """SHA-256 in hex. A key has 256 random bits, so nobody can try them all and no slow hash is needed."""
    return hashlib.sha256(key.encode()).hexdigest()


def owner(known: Clients, key: str) -> str | None:
    """The name of the client with this key; takes equally long whoever it is."""
    asked, found = digest(key), None
    for name, client in known.clients.items():
        if hmac.compare_digest(client.key, asked):
            found = name
    return found


def add(file: Path, name: str, rate: str = RATE, key: str | None = None) -> str:
    """Make a client and return its key, which is kept nowhere. key: one that was made elsewhere."""
    if not _NAME.fullmatch(name):
        raise Mistake(f"{name!r}: no name for a client; use up to 40 small letters, digits and hyphens")
    try:
        _rate(rate)
    except ValueError as error:
        raise Mistake(f"--rate {error}") from None
    key = key or f"spira_{secrets.token_urlsafe(32)}"
    with _changing(file) as known:
        if name in known.clients:
            raise Mistake(f"{name}: there is such a client; remove it first to give it a new key")
        known.clients[name] = Client(key=digest(key), rate=rate, added=datetime.now(UTC).isoformat(timespec="seconds"))
    return key


def remove(file: Path, name: str) -> None:
    """From now on its key opens nothing."""
    with _changing(file) as known:
        if name not in known.clients:
            raise Mistake(f"{name}: no such client; there are: {', '.join(known.clients) or 'none'}")
        del known.clients[name]


def first(file: Path, secret: Path) -> None:
    """Where there is no `clients.json` yet, make the client `demo` with the key that `secret` holds."""
    if not file.exists():
        add(file, "demo", key=_key(secret, "demo"))


def keep(file: Path, name: str, secret: Path, rate: str) -> None:
    """Make sure that the client `name`, a part of this system, has the key that `secret` holds, old or new."""
    key = digest(_key(secret, name))
    with _changing(file) as known:
        if name not in known.clients or known.clients[name].key != key:
            known.clients[name] = Client(key=key, rate=rate, added=datetime.now(UTC).isoformat(timespec="seconds"))


def _key(secret: Path, name: str) -> str:
    key = settings.secret(secret, f"the key of the client `{name}`")
    if len(key) < 32:
        raise Mistake(f"{secret}: too short for the key of the client `{name}`; at least 32 random characters")
    return key


@contextmanager
def _changing(file: Path) -> Iterator[Clients]:
    """The content, written back at the end; one at a time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = file.with_suffix(".lock").open("w")
    except OSError as error:
        raise Mistake(f"{file.parent}: cannot be written ({error.strerror})") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = files.read(file, Clients)
        yield known
        files.write(file, known)
