"""The one database of accounts, sessions and inferences: SQLite on one machine, PostgreSQL in containers.

make = sessions(engine(settings.url()))
with make.begin() as session: ...      # a transaction that may write
with sessions(e, reading=True)() as session: ...   # SQLite: lets others write meanwhile
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, DateTime, Dialect, Engine, MetaData, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.types import TypeDecorator

from serve.gateway.settings import Mistake

BUSY_SECONDS = 10
_LOCK = 5_714_620  # any number that nobody else locks in this database
_READING = "spira_reading"


class Base(DeclarativeBase):
    """Of every table. Constraints have names, so that a later migration can change them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Moment(TypeDecorator[datetime]):
    """A time with its zone, always UTC: SQLite would forget the zone. In migrations: `sa.DateTime(timezone=True)`."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """A time without a zone is a mistake of ours."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a time without a zone")
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """What SQLite gives back is UTC."""
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def engine(url: str | URL) -> Engine:
    """Connections to the database at `url`; SQLite's folder is made, for its owner alone."""
    url = make_url(url)
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=10, pool_timeout=BUSY_SECONDS)
    if url.database and url.database != ":memory:":
        file = Path(url.database)
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.touch(mode=0o600)
        except OSError as error:
            raise Mistake(f"{file}: cannot be written ({error.strerror}); SPIRA_DATABASE names it") from None
    # A place in the pool for every thread of FastAPI's (40), and more: an open file is all that one costs.
    made = create_engine(url, connect_args={"timeout": BUSY_SECONDS}, pool_size=20, max_overflow=40)
    event.listen(made, "connect", _opened)
    event.listen(made, "begin", _begun)
    return made


def sessions(engine: Engine, *, reading: bool = False) -> sessionmaker[Session]:
    """Makes sessions. reading: never writes, and so stands in nobody's way."""
    bind = engine.execution_options(**{_READING: True}) if reading else engine
    return sessionmaker(bind, expire_on_commit=False)


def migrate(engine: Engine) -> None:
    """Bring the database to the newest form, in one transaction. Several may start at once: one does it, all wait."""
    try:
        with engine.begin() as connection:  # SQLite: BEGIN IMMEDIATE is the lock
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            command.upgrade(configuration(connection), "head")
    except OperationalError as error:
        url = engine.url.render_as_string(hide_password=True)
        raise Mistake(f"{url}: no access to this database ({str(error.orig).splitlines()[0]})") from None


def configuration(connection: Connection) -> Config:
    """Alembic's, on an open connection."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _opened(connection: Any, record: object) -> None:
    # SQLAlchemy says BEGIN itself (below); the driver would say it only before the first write, and never before DDL.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begun(connection: Connection) -> None:
    # A transaction that reads first and writes later would fail at once where another one wrote in between; IMMEDIATE
    # waits for its turn instead.
    reading = connection.get_execution_options().get(_READING, False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
