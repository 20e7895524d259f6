"""What the app and its worker are told by their environment: `SPIRA_APP_*`, and what other parts share with them.

Where the database and the trail are: access/settings.py.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from serve.gateway.settings import Mistake, from_environment

PREFIX = "SPIRA_APP_"
SHARED = {
    "nats": "SPIRA_NATS",
    "nats_token": "SPIRA_NATS_TOKEN_FILE",
    "gateway": "SPIRA_GATEWAY",
    "gateway_key": "SPIRA_GATEWAY_KEY",
    "lake": "SPIRA_LAKE",
    "collect": "SPIRA_COLLECT",
    "pseudonym_key": "SPIRA_PSEUDONYM_KEY",
}
DAY = 86_400.0
# JetStream drops a message whose id it has seen within this time, in seconds.
DUPLICATES = 120.0


class Settings(BaseModel):
    """Every setting with its default; sizes in bytes, times in seconds unless the name says days."""

    model_config = ConfigDict(frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(8093, ge=1, le=65535)
    metrics_port: int = Field(8094, ge=1, le=65535)
    nats: str = "nats://127.0.0.1:4222"
    nats_token: Path | None = None
    gateway: str = "http://127.0.0.1:8090"
    gateway_key: Path = Path("var/secrets/gateway_app_key")  # a file with the key of the gateway's client `app`
    lake: str = "var/lake"  # where collection/withdrawn says whose recordings must go
    collect: str = "http://127.0.0.1:8092"
    pseudonym_key: Path = Path("var/secrets/pseudonym_key")
    audio: str = "var/inferences"  # a folder or an fsspec URI
    home: Path = Path("var/app")  # uploads that are under way
    live: Path | None = None  # the live accuracy, for status, report and dashboard
    retention_days: float = Field(30, gt=0)
    max_bytes: int = Field(33_554_432, ge=1)  # as the gateway's
    body_seconds: float = Field(120, gt=0)  # for a client to send one body
    uploads: int = Field(256, ge=1)  # unfinished ones of one account
    upload_hours: float = Field(24, gt=0)  # then what was begun and never finished is forgotten
    at_once: int = Field(4, ge=1)  # requests that a worker has at the gateway at a time
    answer_seconds: float = Field(40, gt=0)  # for the gateway, which itself gives up after 32
    ack_seconds: float = Field(60, gt=0)  # then JetStream gives a request to the next worker
    # After each try that found the model away; one try more than pauses, then a dead letter.
    pauses: tuple[float, ...] = (1, 5, 15, 60)
    redrive_seconds: float = Field(300, gt=0)  # then a request without an answer is published again
    sweep_seconds: float = Field(30, gt=0)  # between two looks at retention, withdrawals, abandoned uploads

    @field_validator("pauses", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @property
    def tries(self) -> int:
        """How often the gateway is asked before a request becomes a dead letter."""
        return len(self.pauses) + 1

    @property
    def live_file(self) -> str:
        """Where the live accuracy is written."""
        return str(self.live) if self.live else f"{self.audio.rstrip('/')}/live.json"


def read(env: Mapping[str, str]) -> Settings:
    """The settings in `env`; raises `Mistake` naming the variable that cannot be."""
    settings = from_environment(Settings, env, SHARED, PREFIX)
    if settings.answer_seconds >= settings.ack_seconds:
        raise Mistake(
            f"SPIRA_APP_ANSWER_SECONDS={settings.answer_seconds:g}: must be below SPIRA_APP_ACK_SECONDS="
            f"{settings.ack_seconds:g}, or a request that is being answered is given to a second worker"
        )
    return settings
