"""Settings of the gateway, from the environment: `SPIRA_GATEWAY_PORT=8090` and so on."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

PREFIX = "SPIRA_GATEWAY_"
Chosen = TypeVar("Chosen", bound=BaseModel)
# Where TorchServe is; the rest of the stack knows it under these names.
SHARED = {"inference": "SPIRA_INFERENCE", "management": "SPIRA_MANAGEMENT", "keys": "SPIRA_KEYS"}


class Mistake(Exception):
    """A mistake of whoever runs the gateway, in one sentence for them."""


class Settings(BaseModel):
    """Every setting with its default; sizes in bytes, times in seconds."""

    model_config = ConfigDict(frozen=True)

    inference: str = "http://127.0.0.1:8085"
    management: str = "http://127.0.0.1:8086"
    keys: Path = Path("var/torchserve/key_file.json")
    model: str = "spira"
    home: Path = Path("var/gateway")  # clients.json, routes.json, audit.jsonl, shadow.jsonl
    audit: Path | None = None  # a folder of its own for audit.jsonl, for others to read
    host: str = "127.0.0.1"
    port: int = Field(8090, ge=1, le=65535)
    metrics_port: int = Field(8091, ge=1, le=65535)
    first_key: Path | None = None  # where there is no client yet, `demo` gets the key in this file
    app_key: Path | None = None  # the client `app`, the inference app's worker, has the key in this file
    max_bytes: int = Field(33_554_432, ge=1)  # as TorchServe's own max_request_size: 120 s of stereo at 48 kHz fit
    in_flight: int = Field(16, ge=1)  # times max_bytes is the memory that bodies may take
    at_once: int = Field(8, ge=1)  # asked of TorchServe at a time: one batch
    body_seconds: float = Field(20, gt=0)  # for a client to send its recording
    answer_seconds: float = Field(32, gt=0)  # for TorchServe, which itself gives up after 30
    drain_seconds: float = Field(1, ge=0)  # between "not ready" and no more connections
    shadow_queue: int = Field(8, ge=1)

    @property
    def audit_file(self) -> Path:
        """Where the lines of the audit go."""
        return (self.audit or self.home) / "audit.jsonl"


def read(env: Mapping[str, str]) -> Settings:
    """The settings in `env`; raises `Mistake` naming the variable that cannot be."""
    return from_environment(Settings, env, SHARED, PREFIX)


def from_environment(kind: type[Chosen], env: Mapping[str, str], shared: Mapping[str, str], prefix: str = "") -> Chosen:
    """`kind` as `env` has it: each field under its name in `shared`, else under `prefix` and its own.

    Raises `Mistake` naming the variable that cannot be, or that begins with `prefix` and is none.
    """
    names = {field: shared.get(field, prefix + field.upper()) for field in kind.model_fields}
    unknown = sorted(name for name in env if prefix and name.startswith(prefix) and name not in names.values())
    if unknown:
        raise Mistake(f"{unknown[0]}: no such setting; there are {', '.join(sorted(names.values()))}")
    try:
        return kind.model_validate({field: env[name] for field, name in names.items() if env.get(name)})
    except ValidationError as error:
        first = error.errors()[0]
        name = names[str(first["loc"][0])]
        raise Mistake(f"{name}={env[name]}: {first['msg'].removeprefix('Value error, ')}") from None


def secret(file: Path, what: str = "a secret") -> str:
    """What a secret's file holds, without the line's end. Raises `Mistake`, which says `what` it should be."""
    try:
        content = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(f"{file}: cannot be read ({getattr(error, 'strerror', 'not text')}); it holds {what}") from None
    if not content:
        raise Mistake(f"{file}: empty; it should hold {what}")
    return content
