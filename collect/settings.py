"""Settings of the collection, from the environment: `SPIRA_COLLECT_PORT=8092`, and what other parts share with it."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from access import trail
from serve.gateway.settings import from_environment

PREFIX = "SPIRA_COLLECT_"
SHARED = {
    "lake": "SPIRA_LAKE",
    "pseudonym_key": "SPIRA_PSEUDONYM_KEY",
    "trail": trail.VARIABLE,
    "nats": "SPIRA_NATS",
    "nats_token": "SPIRA_NATS_TOKEN_FILE",
    "audio": "SPIRA_APP_AUDIO",
}


class Settings(BaseModel):
    """Every setting with its default; sizes in bytes, times in seconds."""

    model_config = ConfigDict(frozen=True)

    lake: str = "var/lake"
    pseudonym_key: Path = Path("var/secrets/pseudonym_key")  # made at the first start; it finds a subject
    trail: Path = trail.FOLDER
    host: str = "127.0.0.1"
    port: int = Field(8092, ge=1, le=65535)
    max_bytes: int = Field(33_554_432, ge=1)  # as the gateway's: 120 s of stereo at 48 kHz fit
    body_seconds: float = Field(120, gt=0)  # for a client to send its recording
    at_once: int = Field(8, ge=1)  # recordings being read at a time; times max_bytes is the memory that they may take
    nats: str = ""  # where labels of the app come from; empty: none do
    nats_token: Path | None = None
    audio: str = "var/inferences"  # where the app keeps the recordings that such labels are about

    @property
    def trail_file(self) -> Path:
        """Where the lines of the trail go."""
        return self.trail / trail.NAME


def read(env: Mapping[str, str]) -> Settings:
    """The settings in `env`; raises `Mistake` naming the variable that cannot be."""
    return from_environment(Settings, env, SHARED, PREFIX)
