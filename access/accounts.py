"""Accounts: a name, roles, and a password (people) or a key (machines). Names of people are not needed here."""

import hashlib
import re
import secrets
import threading
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import JSON, ForeignKey, String, delete, func, select, text
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

from access.database import Base, Moment, now
from serve.gateway.settings import Mistake, secret

NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,39}")
FIRST = "demo"
SHORTEST, LONGEST = 12, 256  # characters of a password
_hasher = PasswordHasher()  # Argon2id, 64 MiB and 3 passes: RFC 9106, second choice
_turns = threading.Semaphore(2)  # so that many log-ins at once take 128 MiB, not as much as there is


class Role(StrEnum):
    """What an account may do; it has one or more."""

    collector = "collector"  # brings recordings in
    clinician = "clinician"  # asks the model, enters diagnoses
    engineer = "engineer"  # runs the system; sees no recording


class Account(Base):
    """password: Argon2id. key: SHA-256 in hex; it has 256 random bits, so no slow hash is needed."""

    __tablename__ = "accounts"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    roles: Mapped[list[str]] = mapped_column(JSON)
    password: Mapped[str | None] = mapped_column(String(200))
    key: Mapped[str | None] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime] = mapped_column(Moment, default=now)


class Login(Base):
    """A session of somebody who logged in. token: SHA-256 of what the cookie holds."""

    __tablename__ = "logins"

    token: Mapped[str] = mapped_column(String(64), primary_key=True)
    account: Mapped[str] = mapped_column(ForeignKey("accounts.name", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(Moment)
    seen_at: Mapped[datetime] = mapped_column(Moment)


def digest(token: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def add(session: Session, name: str, roles: Iterable[str], password: str | None = None) -> str | None:
    """Make an account, with this password; without one, with a key, which is returned. Raises `Mistake`."""
    if not NAME.fullmatch(name):
        raise Mistake(f"{name!r}: an account's name has up to 40 small letters, digits, dots and hyphens")
    wanted = list(dict.fromkeys(roles))
    if unknown := [role for role in wanted if role not in list(Role)]:
        raise Mistake(f"{unknown[0]}: no such role; there are {', '.join(Role)}")
    if not wanted:
        raise Mistake(f"{name}: give it a role: {', '.join(Role)}")
    if session.get(Account, name):
        raise Mistake(f"{name}: there is such an account; remove it first, or choose another name")
    key = None if password is not None else f"spira_{secrets.token_urlsafe(32)}"
    session.add(
        Account(
            name=name,
            roles=wanted,
            password=_hashed(name, password) if password is not None else None,
            key=digest(key) if key else None,
        )
    )
    session.flush()
    return key


def remove(session: Session, name: str) -> None:
    """Delete an account and its sessions; what it did stays in the trail."""
    session.delete(_found(session, name))


def set_password(session: Session, name: str, password: str) -> None:
    """Give an account another password, and end its sessions."""
    _found(session, name).password = _hashed(name, password)
    session.execute(delete(Login).where(Login.account == name))


def first(make: sessionmaker[Session], file: Path) -> None:
    """Where there is no account at all, make `demo` with every role and the password in `file`.

    While `demo` is there, its password is what `file` holds: the data outlives the folder in which secrets were made.
    """
    password = secret(file)
    with make.begin() as session:
        if session.get_bind().dialect.name == "postgresql":  # two services may start at once
            session.execute(text("LOCK TABLE accounts IN EXCLUSIVE MODE"))
        if session.scalar(select(func.count()).select_from(Account)) == 0:
            add(session, FIRST, list(Role), password)
        elif session.get(Account, FIRST) and not checked(session, FIRST, password):
            set_password(session, FIRST, password)


def checked(session: Session, name: str, password: str) -> Account | None:
    """The account with this name and password; takes as long where there is none."""
    account = session.get(Account, name)
    known = account.password if account else None
    with _turns:
        try:
            _hasher.verify(known or _nobody(), password[: LONGEST + 1])
        except (VerificationError, InvalidHashError):
            return None
    return account if known else None


def with_key(session: Session, key: str) -> Account | None:
    """The account with this key."""
    return session.scalar(select(Account).where(Account.key == digest(key)))


def _found(session: Session, name: str) -> Account:
    account = session.get(Account, name)
    if account is None:
        raise Mistake(f"{name}: there is no such account; `accounts list` shows them")
    return account


def _hashed(name: str, password: str) -> str:
    if not SHORTEST <= len(password) <= LONGEST:
        raise Mistake(f"{name}: a password has {SHORTEST} to {LONGEST} characters")
    return _hasher.hash(password)


def _nobody() -> str:
    # A valid hash whose password nobody knows: SHA-256's worth of zeros never comes out of Argon2.
    return "$argon2id$v=19$m=65536,t=3,p=4$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
