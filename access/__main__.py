"""`python -m access`: bring the database up to date, and manage who may log in.

Settings come from the environment: SPIRA_DATABASE and what else access/settings.py names.
"""

import argparse
import getpass
import os
import sys
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from access import accounts, trail
from access.accounts import Account, Role
from access.database import engine, migrate, sessions
from access.settings import Settings, read
from serve.gateway.settings import Mistake, secret


def main(arguments: list[str] | None = None) -> None:
    """Parse and do; a mistake is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m access", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("migrate", help="bring the database to the newest form; every service does so at its start")
    account = commands.add_parser("accounts", help="who may log in").add_subparsers(dest="action", required=True)
    account.add_parser("list", help="names, roles, since when")
    added = account.add_parser("add", help="make an account")
    added.add_argument("name", help="small letters, digits, dots, hyphens")
    added.add_argument("--role", action="append", required=True, choices=list(Role), help="may be given more than once")
    how = added.add_mutually_exclusive_group()
    how.add_argument("--password-file", type=Path, help="a file with its password; else it is asked for")
    how.add_argument("--key", action="store_true", help="a machine: print a key, once")
    account.add_parser("remove", help="end its sessions, forget it").add_argument("name")
    changed = account.add_parser("password", help="give it another password, and end its sessions")
    changed.add_argument("name")
    changed.add_argument("--password-file", type=Path)
    options = parser.parse_args(arguments)
    try:
        settings = read(os.environ)
        opened = engine(settings.url())
        migrate(opened)
        if options.command == "accounts":
            _accounts(settings, sessions(opened), options)
    except Mistake as mistake:
        print(mistake, file=sys.stderr)
        raise SystemExit(2) from None


def _accounts(settings: Settings, make: sessionmaker[Session], options: argparse.Namespace) -> None:
    if options.action == "list":
        with make() as session:
            for account in session.scalars(select(Account).order_by(Account.name)):
                kind = "key" if account.key else "password"
                print(f"{account.name:<40} {kind:<9} {','.join(account.roles):<30} since {account.created_at:%Y-%m-%d}")
        return
    password = None if options.action == "remove" or getattr(options, "key", False) else _password(options)
    key = None
    with make.begin() as session:
        match options.action:
            case "add":
                key = accounts.add(session, options.name, options.role, password)
            case "remove":
                accounts.remove(session, options.name)
            case _:
                accounts.set_password(session, options.name, password or "")
        trail.note(settings.trail_file, "operator", f"account_{options.action}", account=options.name)
    if key:
        print(f"{options.name} may {', '.join(options.role)}. Its key, which is shown this once:", file=sys.stderr)
        print(key)


def _password(options: argparse.Namespace) -> str:
    if options.password_file:
        return secret(options.password_file)
    first = getpass.getpass(f"password of {options.name}: ")
    if getpass.getpass("again: ") != first:
        raise Mistake("the two are not the same")
    return first


if __name__ == "__main__":
    main()
