"""Who asks: sessions with a cookie for people, keys for machines; roles, and tokens against forged requests (CSRF).

app = FastAPI(); attach(app, read(os.environ)); app.include_router(router())

@app.post("/v1/things")
def make(person: Annotated[Person, Depends(who(Role.clinician))]): ...
"""

import hashlib
import hmac
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy import Engine, delete, or_, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from access import accounts, failures, trail
from access.accounts import LONGEST, Account, Login, Role, digest
from access.database import engine, migrate, now, sessions
from access.settings import Settings
from serve.gateway.problem import Problem

COOKIE = "spira_session"
CSRF = "X-CSRF-Token"
LASTS, IDLE, SEEN = timedelta(hours=12), timedelta(hours=2), timedelta(minutes=1)
TRIES, WITHIN, REMEMBERED = 5, 300.0, 10_000  # wrong passwords of a name from an address; seconds; pairs kept
_SAFE = ("GET", "HEAD", "OPTIONS")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Person:
    """Who asks; a machine with a key is one as well."""

    name: str
    roles: frozenset[Role]


@dataclass
class Access:
    """What lives as long as the process: `app.state.access`."""

    settings: Settings
    engine: Engine
    write: sessionmaker[Session]
    read: sessionmaker[Session]
    tries: "Tries"


class Tries:
    """Wrong passwords lately, by name and address; in memory alone, so that no address is ever written down."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._known: dict[tuple[str, str], deque[float]] = {}

    def take(self, name: str, address: str) -> None:
        """Count a try before it is made: many at once get no more than one after the other. Raises `Problem` 429."""
        with self._lock:
            at, key = self._clock(), (name, address)
            for other in [k for k, times in self._known.items() if at - times[-1] >= WITHIN]:
                del self._known[other]
            times = self._known.setdefault(key, deque(maxlen=TRIES))
            if len(times) == TRIES and at - times[0] < WITHIN:
                wait = int(WITHIN - (at - times[0])) + 1
                raise Problem(
                    429, "tries", f"too many wrong passwords; wait {wait} s", headers={"Retry-After": str(wait)}
                )
            if len(self._known) > REMEMBERED:
                del self._known[next(iter(self._known))]
            times.append(at)

    def undo(self, name: str, address: str) -> None:
        """The last try told nobody anything: the database was away."""
        with self._lock:
            times = self._known.get((name, address))
            if times:
                times.pop()
            if not times:
                self._known.pop((name, address), None)

    def forget(self, name: str, address: str) -> None:
        """It was the right password."""
        with self._lock:
            self._known.pop((name, address), None)


class Credentials(BaseModel):
    """What somebody logs in with."""

    name: Annotated[str, Field(max_length=40)]
    password: Annotated[str, Field(max_length=LONGEST)]


class Me(BaseModel):
    """csrf: goes into the header X-CSRF-Token of whatever changes something."""

    name: str
    roles: list[Role]
    csrf: str


def attach(app: FastAPI, settings: Settings) -> Access:
    """Give `app` its accounts: opens the database, brings it up to date, makes the first account. Raises `Mistake`."""
    opened = engine(settings.url())
    migrate(opened)
    access = Access(settings, opened, sessions(opened), sessions(opened, reading=True), Tries())
    if settings.first_password:
        accounts.first(access.write, settings.first_password)
    app.state.access = access
    failures.install(app)
    return access


def router() -> APIRouter:
    """`/v1/session`: log in, who am I, log out."""
    made = APIRouter(tags=["session"])
    made.add_api_route("/v1/session", log_in, methods=["POST"], response_model=Me, summary="Log in")
    made.add_api_route("/v1/session", me, methods=["GET"], response_model=Me, summary="Who is logged in")
    made.add_api_route("/v1/session", log_out, methods=["DELETE"], status_code=204, summary="Log out")
    return made


def log_in(request: Request, response: Response, given: Credentials) -> Me:
    """Check name and password; the answer sets the cookie."""
    access: Access = request.app.state.access
    _same_origin(request)
    address = request.client.host if request.client else ""
    access.tries.take(given.name, address)
    try:
        with access.read() as session:  # Argon2 takes its time: nobody's writing waits for it
            account = accounts.checked(session, given.name, given.password)
    except SQLAlchemyError:
        access.tries.undo(given.name, address)
        raise
    if account is None:
        trail.note(access.settings.trail_file, _known(access, given.name), "login_refused")
        raise Problem(401, "credentials", "name or password is wrong")
    access.tries.forget(given.name, address)
    token, at = secrets.token_urlsafe(32), now()
    trail.note(access.settings.trail_file, account.name, "login")
    with access.write.begin() as session:
        session.execute(delete(Login).where(or_(Login.created_at < at - LASTS, Login.seen_at < at - IDLE)))
        session.add(Login(token=digest(token), account=account.name, created_at=at, seen_at=at))
    response.set_cookie(
        COOKIE,
        token,
        max_age=int(LASTS.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=not (access.settings.insecure_cookies or _plain_loopback(request)),
    )
    response.headers["Cache-Control"] = "no-store"
    return _me(account, token)


def me(request: Request, response: Response) -> Me:
    """Name, roles and token of whoever is logged in; 401 for nobody."""
    token = request.cookies.get(COOKIE, "")
    account = _by_cookie(request.app.state.access, token)
    if account is None:
        raise Problem(401, "session", "nobody is logged in, or the session has ended")
    response.headers["Cache-Control"] = "no-store"
    return _me(account, token)


def log_out(request: Request) -> Response:
    """End the session; without one there is nothing to do."""
    access: Access = request.app.state.access
    token = request.cookies.get(COOKIE, "")
    if account := _by_cookie(access, token):
        _not_forged(request, token)
        with access.write.begin() as session:
            session.execute(delete(Login).where(Login.token == digest(token)))
        trail.note(access.settings.trail_file, account.name, "logout")
    answer = Response(status_code=204)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


def who(*roles: Role) -> Callable[[Request], Person]:
    """A dependency: who asks, having one of `roles` (none named: any). Raises `Problem`: 401, 403."""

    def person(request: Request) -> Person:
        asks = identify(request)
        if roles and not asks.roles & set(roles):
            raise Problem(403, "role", f"this needs the role {' or '.join(roles)}")
        return asks

    return person


def identify(request: Request) -> Person:
    """Who asks, whatever the role; raises `Problem`: 401, and 403 for what may be a forged request."""
    access: Access = request.app.state.access
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        with access.read() as session:
            account = accounts.with_key(session, key.strip())
        if account is None:
            raise Problem(401, "key", "this key is not known", headers={"WWW-Authenticate": "Bearer"})
    else:
        token = request.cookies.get(COOKIE, "")
        account = _by_cookie(access, token)
        if account is None:
            raise Problem(401, "session", "log in first", headers={"WWW-Authenticate": "Bearer"})
        if request.method not in _SAFE:
            _not_forged(request, token)
    return Person(account.name, frozenset(Role(role) for role in account.roles))


Anyone = Annotated[Person, Depends(who())]


def _by_cookie(access: Access, token: str) -> Account | None:
    if not token:
        return None
    at = now()
    with access.read() as session:
        login = session.get(Login, digest(token))
        if login is None or at - login.created_at > LASTS or at - login.seen_at > IDLE:
            return None
        account = session.get(Account, login.account)
    if at - login.seen_at > SEEN:  # once a minute: a write for every request would be too much
        with access.write.begin() as session:
            session.execute(update(Login).where(Login.token == login.token).values(seen_at=at))
    return account


def _me(account: Account, token: str) -> Me:
    return Me(name=account.name, roles=[Role(role) for role in account.roles], csrf=_csrf(token))


def _csrf(token: str) -> str:
    """Derived from the session's token, which no script can read: nothing more to keep."""
    return hmac.new(token.encode(), b"csrf", hashlib.sha256).hexdigest()


def _not_forged(request: Request, token: str) -> None:
    _same_origin(request)
    if not hmac.compare_digest(request.headers.get(CSRF, "").encode(), _csrf(token).encode()):
        raise Problem(403, "csrf", f"the header {CSRF} must hold the session's token: GET /v1/session tells it")


def _same_origin(request: Request) -> None:
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host", ""):
        raise Problem(403, "origin", "this request comes from another site's page")


def _plain_loopback(request: Request) -> bool:
    return request.url.scheme == "http" and request.url.hostname in _LOOPBACK


def _known(access: Access, name: str) -> str:
    """The name for the trail, if there is such an account: people type passwords into the wrong field."""
    with access.read() as session:
        return name if session.get(Account, name) else "unknown"
