"""Settings that the app, its worker and the collection share: where the database is, who may log in first."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from access import trail
from serve.gateway.settings import Mistake, from_environment, secret

NAMES = {
    "database": "SPIRA_DATABASE",
    "password_file": "SPIRA_DATABASE_PASSWORD_FILE",
    "first_password": "SPIRA_FIRST_PASSWORD",
    "trail": trail.VARIABLE,
    "insecure_cookies": "SPIRA_INSECURE_COOKIES",
}


class Settings(BaseModel):
    """Every setting with its default."""

    model_config = ConfigDict(frozen=True)

    database: str = "sqlite:///var/app/app.db"
    password_file: Path | None = None  # holds the database's password, which then is not in the URL
    first_password: Path | None = None  # where there is no account yet, `demo` gets the password in this file
    trail: Path = trail.FOLDER
    insecure_cookies: bool = False  # let cookies travel over plain http to other machines; for trials only

    @property
    def trail_file(self) -> Path:
        """Where the lines of the trail go."""
        return self.trail / trail.NAME

    def url(self) -> URL:
        """The database's address with its password; raises `Mistake` naming the setting, never what a secret holds."""
        try:
            url = make_url(self.database)
        except ArgumentError:
            raise Mistake("SPIRA_DATABASE: no such address; write sqlite:///FILE or postgresql+psycopg://...") from None
        if url.get_backend_name() not in ("sqlite", "postgresql"):
            raise Mistake(f"SPIRA_DATABASE: {url.get_backend_name()} is not supported; use SQLite or PostgreSQL")
        return url.set(password=secret(self.password_file)) if self.password_file else url


def read(env: Mapping[str, str]) -> Settings:
    """The settings in `env`; raises `Mistake` naming the variable that cannot be."""
    return from_environment(Settings, env, NAMES)
