"""The database: its migrations, on SQLite and on a real PostgreSQL where this machine has one; who waits for whom."""

import multiprocessing
import os
import shutil
import subprocess
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import inspect, select
from sqlalchemy.exc import StatementError

from access import accounts
from access.accounts import Account
from access.database import configuration, engine, migrate, sessions
from serve.gateway.settings import Mistake

POSTGRES = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/folder/app.db"


def start(url: str) -> None:
    migrate(engine(url))


def at_once(url: str, how_many: int) -> list[int | None]:
    """Exit codes of processes that all migrate."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=start, args=(url,)) for _ in range(how_many)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_models_and_migrations_agree_and_a_second_migration_changes_nothing(url):
    opened = engine(url)
    migrate(opened)
    migrate(opened)
    with opened.begin() as connection:
        command.check(configuration(connection))  # raises where they differ


def test_alembic_check_sees_a_table_that_no_migration_makes(url):
    opened = engine(url)
    migrate(opened)
    with opened.begin() as connection:
        connection.exec_driver_sql("DROP TABLE logins")
    with opened.begin() as connection, pytest.raises(Exception, match="New upgrade operations"):
        command.check(configuration(connection))


def test_three_services_may_start_at_once(url):
    assert at_once(url, 3) == [0, 0, 0]
    assert {"accounts", "logins", "alembic_version"} <= set(inspect(engine(url)).get_table_names())


def test_a_migration_that_fails_leaves_nothing(url, monkeypatch):
    opened = engine(url)
    monkeypatch.setattr("alembic.op.create_index", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        migrate(opened)
    assert inspect(opened).get_table_names() == []
    monkeypatch.undo()
    migrate(opened)


def test_the_file_is_for_its_owner_alone(url, tmp_path):
    migrate(engine(url))
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "folder/app.db").stat().st_mode & 0o777 == 0o600


def test_who_writes_waits_for_its_turn_and_who_reads_does_not(url):
    opened = engine(url)
    migrate(opened)
    write, read = sessions(opened), sessions(opened, reading=True)
    done = []

    def second() -> None:
        with write.begin() as session:  # reads first, then writes: must see what the first one wrote
            done.append(session.scalar(select(Account.name)))

    with write.begin() as session:
        accounts.add(session, "one", ["engineer"])
        waiting = threading.Thread(target=second)
        waiting.start()
        with read() as looking:
            assert looking.scalar(select(Account.name)) is None
        time.sleep(0.2)
        assert done == []
    waiting.join(5)
    assert done == ["one"]


def test_a_time_keeps_its_zone_and_one_without_is_refused(url):
    opened = engine(url)
    migrate(opened)
    make = sessions(opened)
    at = datetime(2026, 11, 25, 12, tzinfo=timezone(timedelta(hours=-3)))
    with make.begin() as session:
        session.add(Account(name="one", roles=["engineer"], created_at=at))
    with make() as session:
        found = session.get(Account, "one").created_at
    assert (found, found.tzinfo) == (at, UTC)
    with pytest.raises(StatementError, match="without a zone"), make.begin() as session:
        session.add(Account(name="two", roles=["engineer"], created_at=datetime(2026, 11, 25)))


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Mistake, match=r"file/app.db: cannot be written"):
        engine(f"sqlite:///{tmp_path}/file/app.db")


@pytest.mark.skipif(not POSTGRES.is_dir(), reason="no PostgreSQL on this machine; the stack in containers has one")
@pytest.mark.slow
def test_postgres_as_well(tmp_path):
    """A real server on a socket of its own; as somebody else where we are root, whom it refuses."""
    with tempfile.TemporaryDirectory() as folder:  # tmp_path stands in a folder that nobody else gets into
        Path(folder).chmod(0o755)
        postgres_as_well(tmp_path, Path(folder))


def postgres_as_well(tmp_path: Path, place: Path) -> None:
    data, socket = place / "data", place / "s"
    whom = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
    for folder in (data, socket):
        folder.mkdir()
        if whom:
            shutil.chown(folder, "nobody", "nogroup")
    env = {"PATH": f"{POSTGRES}:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}

    def run(*words: object) -> None:
        subprocess.run([*whom, *map(str, words)], env=env, check=True, cwd="/", stdout=subprocess.DEVNULL)

    run("initdb", "-D", data, "-U", "spira", "--auth=trust", "--no-sync")
    run(
        "pg_ctl",
        "-D",
        data,
        "-s",
        "-w",
        "-o",
        f"-c fsync=off -c listen_addresses='' -c unix_socket_directories={socket}",
        "start",
    )
    try:
        url = f"postgresql+psycopg://spira@/postgres?host={socket}"
        assert at_once(url, 3) == [0, 0, 0]
        opened = engine(url)
        with opened.begin() as connection:
            command.check(configuration(connection))
        make = sessions(opened)
        secret = tmp_path / "secret"
        secret.write_text("long enough a secret\n")
        threads = [threading.Thread(target=accounts.first, args=(make, secret)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        with make() as session:
            assert [account.name for account in session.scalars(select(Account))] == ["demo"]
            assert accounts.checked(session, "demo", "long enough a secret")
            assert session.get(Account, "demo").created_at.tzinfo is not None
        opened.dispose()
    finally:
        run("pg_ctl", "-D", data, "-s", "-w", "-m", "immediate", "stop")
