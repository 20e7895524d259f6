"""A client of the gateway: `Client("http://127.0.0.1:8090", key).predict("sentence.wav")`.

This file needs `requests` and nothing else of this repository: copy it where it is of use.
"""

import time
from pathlib import Path
from typing import Any

import requests

CONNECT_SECONDS, ANSWER_SECONDS = 3.0, 60.0
LONGEST_PAUSE = 60.0  # a server that asks for more is not waited for


class NoAnswer(Exception):
    """Why there is no answer. status: HTTP's, 0 where nothing came back. error: the reason in a word or two."""

    def __init__(self, status: int, error: str, detail: str, request_id: str = "") -> None:
        super().__init__(f"{error}: {detail}" + (f" (request {request_id})" if request_id else ""))
        self.status, self.error, self.detail, self.request_id = status, error, detail, request_id


class Unusable(NoAnswer):
    """The recording cannot be used as it is (413, 415, 422); sending it again changes nothing."""


class NotAllowed(NoAnswer):
    """The key is missing or not known (401)."""


class Unavailable(NoAnswer):
    """The service is busy or away (429, 503, no connection), and stayed so. retry_after: seconds, where it says so."""

    retry_after: float | None = None


class Client:
    """One gateway, one key. Threads may share it."""

    def __init__(self, url: str, key: str, *, tries: int = 4) -> None:
        self.url, self._key, self.tries = url.rstrip("/"), key, tries

    def predict(self, recording: str | Path | bytes, *, windows: bool = False, request_id: str = "") -> dict[str, Any]:
        """The answer to one recording: request_id, probability, calibrated, diagnosis, warnings, model, windows.

        recording: a file, or the bytes of one. Waits and asks again where the server is busy, as long as it says.
        Raises `Unusable`, `NotAllowed`, `Unavailable`, or `NoAnswer` for all else; `OSError` where the file cannot
        be read.
        """
        content = recording if isinstance(recording, bytes) else Path(recording).read_bytes()
        attempt = 1
        while True:
            try:
                return _read(self._ask(content, windows, request_id))
            except Unavailable as busy:
                pause = 0.5 * 2**attempt if busy.retry_after is None else busy.retry_after
                if attempt >= self.tries or pause > LONGEST_PAUSE:
                    raise
            time.sleep(pause)
            attempt += 1

    def _ask(self, content: bytes, windows: bool, request_id: str) -> requests.Response:
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/octet-stream"}
        headers |= {"X-Request-ID": request_id} if request_id else {}
        parameters = {"windows": "true"} if windows else {}
        url, timeout = f"{self.url}/v1/predict", (CONNECT_SECONDS, ANSWER_SECONDS)
        try:
            return requests.post(
                url, content, headers=headers, params=parameters, timeout=timeout, allow_redirects=False
            )
        except requests.RequestException as error:
            raise Unavailable(0, "no connection", f"{self.url} does not answer ({type(error).__name__})") from None


def _read(answer: requests.Response) -> dict[str, Any]:
    try:
        body = dict(answer.json())
    except (ValueError, TypeError):
        body = {}
    if answer.ok and "probability" in body:
        return body
    status, told = answer.status_code, [str(body.get(field, "")) for field in ("error", "detail", "request_id")]
    told[1] = told[1] or f"HTTP {status}"
    kinds = dict.fromkeys((413, 415, 422), Unusable) | {401: NotAllowed} | dict.fromkeys((429, 503), Unavailable)
    failed = kinds.get(status, NoAnswer)(status, told[0] or "no answer", *told[1:])
    wait = answer.headers.get("Retry-After", "")
    if isinstance(failed, Unavailable) and wait.isdigit():
        failed.retry_after = float(wait)
    raise failed
