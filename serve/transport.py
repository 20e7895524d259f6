"""How a TorchServe is spoken to: addresses, tokens and their renewal, time limits."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from spira_train.outcome import TryAgain

CONNECT_SECONDS, ANSWER_SECONDS = 3.0, 60.0


class Late(TryAgain):
    """The server took the request and gave no answer in time."""


@dataclass(frozen=True)
class Server:
    """Where a TorchServe is. keys: its `key_file.json`; None where it runs without tokens. seconds: for an answer."""

    inference: str = "http://127.0.0.1:8085"
    management: str = "http://127.0.0.1:8086"
    keys: Path | None = None
    name: str = "spira"
    seconds: float = ANSWER_SECONDS


def call(server: Server, address: str, key: str, verb: str, path: str, **options: Any) -> requests.Response:
    """One request with the token of `key`; renewed once where the server says that it is invalid or too old.

    Raises `TryAgain` where the server is away or does not take the token, `Late` where it does not answer in time.
    """
    headers = dict(options.pop("headers", {}))
    timeout = (CONNECT_SECONDS, options.pop("timeout", ANSWER_SECONDS))
    try:
        for attempt in ("first", "reread", "renewed"):
            if server.keys:
                token = _token(server, key, renew=attempt == "renewed")
                headers["Authorization"] = f"Bearer {token}"
            answer = requests.request(verb, address + path, headers=headers, timeout=timeout, **options)
            if answer.status_code != 400 or "InvalidKeyException" not in answer.text:
                return answer
    except requests.ReadTimeout:
        raise Late(f"TorchServe at {address} did not answer in time; look at its load and run again") from None
    except requests.RequestException:
        raise TryAgain(f"TorchServe at {address} does not answer; start it and run again") from None
    if not server.keys:
        raise TryAgain(f"TorchServe at {address} asks for a token; pass its key_file.json with --keys")
    raise TryAgain(f"TorchServe at {address} does not take the key in {server.keys}: is it that server's file?")


def _token(server: Server, kind: str, *, renew: bool) -> str:
    try:
        keys = json.loads(server.keys.read_text()) if server.keys else {}
        if renew:
            bearer = {"Authorization": f"Bearer {keys['API']['key']}"}
            url = f"{server.management}/token"
            try:
                requests.get(url, params={"type": kind}, headers=bearer, timeout=(CONNECT_SECONDS, ANSWER_SECONDS))
            except requests.RequestException:
                raise TryAgain(
                    f"{server.keys}: the token is too old, and TorchServe's management API at {server.management}, "
                    "which renews it, does not answer"
                ) from None
            return _token(server, kind, renew=False)
        return str(keys[kind]["key"])
    except FileNotFoundError:
        raise TryAgain(f"{server.keys}: not found; TorchServe writes it when it starts. Is it running?") from None
    except PermissionError:
        raise TryAgain(f"{server.keys}: not readable; it belongs to the user that runs TorchServe") from None
    except (ValueError, KeyError):
        raise TryAgain(f"{server.keys}: not a TorchServe key file, or just being written; run again") from None


def reason(answer: requests.Response) -> str:
    """The status of an answer, with what its body says of it."""
    try:
        body = answer.json()
        detail = body.get("detail") or body.get("message") or body.get("error") or ""
    except (ValueError, AttributeError):
        detail = answer.text[:200]
    return f"{answer.status_code}" + (f": {detail}" if detail else "")
