"""A gateway that answers at once, or as the recording says: `python tests/fake_gateway.py PORT LOG`.

For what no test can make a real one do at a given moment. LOG gets a line for each question: the request's id. Every
answer holds the number of its question, so that a second answer to one request could be told from the first.
"""

import itertools
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEY = "a key of the gateway's client for the app"
_numbers, _lock = itertools.count(1), threading.Lock()


def answer(id: str, number: int) -> dict:
    """As the gateway's, and the number of the question."""
    model = {"version": "2026-11-05-7a7d4e72", "content": "7a" * 32}
    said = {"request_id": id, "probability": 0.7, "calibrated": 0.8, "diagnosis": "positive", "warnings": []}
    return said | {"model": model, "windows": [0.7, 0.7], "number": number}


class Handler(BaseHTTPRequestHandler):
    """Does what the first word of the recording says: `refuse`, `busy`, `broken`, `slow`; else it answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        id = self.headers["X-Request-ID"]
        with _lock, Path(sys.argv[2]).open("a") as log:
            log.write(id + "\n")
        if self.headers["Authorization"] != f"Bearer {KEY}":
            return self.say(401, {"error": "key", "detail": "this key is not known", "request_id": id})
        assert self.path == "/v1/predict?windows=true"
        match body.partition(b" ")[0]:
            case b"refuse":
                self.say(422, {"error": "too_short", "detail": "there is too little to hear", "request_id": id})
            case b"busy":
                self.say(503, {"error": "busy", "detail": "too many requests", "request_id": id}, {"Retry-After": "0"})
            case b"broken":
                self.say(502, {"error": "model", "detail": "the model gave no answer", "request_id": id})
            case word:
                if word == b"slow":
                    time.sleep(1)
                number = next(_numbers) + os.getpid() * 1_000_000
                self.say(200, answer(id, number))

    def say(self, status: int, body: dict, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    server.serve_forever()
