"""The two ends that people touch, used as people use them: collect one recording, ask the app about another."""

import json
import time
import uuid
from pathlib import Path
from typing import Any

import requests

ANSWER_SECONDS = 120.0


class Door:
    """Logged in at the app's address `url`, as the account `name`. Raises `SystemExit` where the door stays shut.

    authority: the certificate that signs the door's, where it is not one that this machine trusts already.
    """

    def __init__(self, url: str, name: str, password: str, authority: Path | None = None) -> None:
        self.url, self.http = url, requests.Session()
        self.http.trust_env = False  # no proxy sees a recording; and REQUESTS_CA_BUNDLE would have the last word
        if authority:
            self.http.verify = str(authority)
        body = self._asked("POST", "/v1/session", json={"name": name, "password": password}).json()
        self.http.headers["X-CSRF-Token"] = body["csrf"]

    def collect(self, recording: bytes, facts: dict[str, Any]) -> dict[str, Any] | None:
        """Hand in a recording for training, with what is known of it; the receipt, None where it is there already.

        Under the same key of pseudonyms it is the same subject's, and there is a receipt; under another one, a refusal.
        """
        files = {"recording": ("recording", recording), "facts": (None, json.dumps(facts))}
        answer = self._asked("POST", "/collect/v1/recordings", files=files, known=409)
        return dict(answer.json()) if answer.ok else None

    def ask(self, recording: bytes) -> dict[str, Any]:
        """Ask the model about a recording, by a message; waits for the answer."""
        place = f"/v1/inferences/{uuid.uuid4().hex}"
        self._asked("PUT", place, data=recording, headers={"Content-Type": "application/octet-stream"})
        deadline = time.monotonic() + ANSWER_SECONDS
        while (found := self._asked("GET", place).json())["state"] == "processing":
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.url}: no answer within {ANSWER_SECONDS:.0f} s; the app's log says why")
            time.sleep(0.1)
        if found["state"] != "completed":
            raise SystemExit(f"{self.url}: {found.get('error')}: {found.get('detail')}")
        return dict(found["answer"])

    def _asked(self, method: str, path: str, known: int = 0, **what: Any) -> requests.Response:
        try:
            answer = self.http.request(method, self.url + path, timeout=30, **what)
        except requests.RequestException as error:
            raise SystemExit(f"{self.url}: does not answer ({type(error).__name__})") from None
        if not answer.ok and answer.status_code != known:
            raise SystemExit(f"{self.url}{path}: {answer.status_code} {answer.text[:200]}")
        return answer
