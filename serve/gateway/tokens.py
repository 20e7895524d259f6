"""TorchServe's inference token: read from its `key_file.json`, renewed before it expires.

TorchServe makes new keys at each start, lets the inference key live for an hour, never renews it by itself, and
writes the file anew when somebody renews it through the management API with the third key, which never expires.
"""

import asyncio
import json
import logging
import time
from datetime import datetime
from pathlib import Path

import httpx

from serve.gateway import metrics
from serve.gateway.problem import away

log = logging.getLogger("spira.gateway")
MARGIN = 120.0  # renewed this many seconds before it expires
PAUSE = 5.0  # between two attempts to renew a token that still holds
SECONDS = 5.0  # for the management API


class Tokens:
    """The one holder of the token; who comes while it is renewed waits for that renewal."""

    def __init__(self, keys: Path, management: str, http: httpx.AsyncClient) -> None:
        self.keys, self.url, self.http = keys, f"{management}/token", http
        self._token, self._expires, self._next_try = "", 0.0, 0.0
        self._lock = asyncio.Lock()

    async def current(self, refused: str | None = None) -> str:
        """The token to send. refused: the one that TorchServe has just refused.

        Raises `Problem` (503) where there is none to be had.
        """
        if self._token not in ("", refused) and not self._due() and not self._lock.locked():
            return self._token
        async with self._lock:
            if self._token in ("", refused) or self._due():
                self._read()  # somebody else may have renewed it
            if self._token == refused or self._due():
                await self._renew(must=self._token == refused)
            return self._token

    def _due(self) -> bool:
        now = time.time()
        return now > self._expires - MARGIN and now > self._next_try

    def _read(self) -> None:
        try:
            known = json.loads(self.keys.read_text())
            token, until = str(known["inference"]["key"]), datetime.fromisoformat(known["inference"]["expiration time"])
        except OSError as error:
            log.warning("%s: cannot be read (%s); TorchServe writes it when it starts", self.keys, error.strerror)
            raise away("the model server is not up") from None
        except (ValueError, KeyError, TypeError):
            log.warning("%s: not a key file of TorchServe, or just being written", self.keys)
            raise away("the model server is not up") from None
        self._token, self._expires, self._next_try = token, until.timestamp(), 0.0

    async def _renew(self, *, must: bool) -> None:
        """must: the present token is of no use any more."""
        self._next_try = time.time() + PAUSE
        try:
            bearer = {"Authorization": f"Bearer {json.loads(self.keys.read_text())['API']['key']}"}
            answer = await self.http.get(self.url, params={"type": "inference"}, headers=bearer, timeout=SECONDS)
            answer.raise_for_status()
        except (httpx.HTTPError, OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: the token was not renewed (%s)", self.url, type(error).__name__)
            if must:
                raise away("the model server does not renew its token") from None
            return
        metrics.renewals.inc()
        self._read()
