"""Which version answers whom: `routes.json`. Without it TorchServe's default version, the champion, does."""

import hashlib
import secrets
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from serve.gateway import files


class Route(BaseModel):
    """A version and its share, of the clients or of the requests."""

    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    share: Annotated[float, Field(gt=0, le=1)]


class Routes(BaseModel):
    """canary: answers a share of the clients. shadow: is asked a share of the requests, beside whoever answers."""

    canary: Route | None = None
    shadow: Route | None = None


def canary(routes: Routes, client: str) -> str | None:
    """The version that answers `client`; None is the default one.

    A client stays on its side while the canary lasts, and when its share grows; another canary draws others.
    """
    route = routes.canary
    if route is None:
        return None
    drawn = int.from_bytes(hashlib.sha256(f"{route.version} {client}".encode()).digest()[:8]) / 2**64
    return route.version if drawn < route.share else None


def shadow(routes: Routes) -> str | None:
    """The version to ask beside this request, if any."""
    route = routes.shadow
    return route.version if route and secrets.randbelow(10**6) < route.share * 10**6 else None


def change(file: Path, name: str, route: Route | None) -> None:
    """Set or end the canary or the shadow; a running gateway takes it up with the next request."""
    files.write(file, files.read(file, Routes).model_copy(update={name: route}))
