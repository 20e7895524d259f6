"""Whether the app loses a request: `python -m bench.kills [--requests 1000]`, on the stack of `make compose-up`.

Recordings are sent to the door while the processes of app, worker, NATS, TorchServe, gateway and PostgreSQL are killed,
one after the other; the engine starts each again. Ends with exit code 1 unless every one was accepted and answered.
"""

import argparse
import io
import subprocess
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import requests
import soundfile

from bench import machine
from local import compose
from local.services import first_password

VICTIMS = ("app-worker", "torchserve", "nats", "app", "gateway", "postgres", "torchserve", "app-worker", "nats", "app")
EVERY, PATIENCE = 6.0, 420.0  # seconds between kills; until an answer must be there
SENDERS, RATE = 24, 16_000


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--requests", type=int, default=1000)
    count = options.parse_args().requests
    chosen = compose.running()
    if chosen is None:
        raise SystemExit("the stack in containers is not up; `make compose-up` starts it")
    url = compose.address("proxy", chosen)
    door = log_in(url)
    work = [(uuid.uuid4().hex, sound(np.random.default_rng(number))) for number in range(count)]
    started = time.monotonic()
    killer = threading.Thread(target=kill)
    killer.start()
    with ThreadPoolExecutor(SENDERS) as pool:
        list(pool.map(lambda one: asked(door, "PUT", f"{url}/v1/inferences/{one[0]}", one[1]), work))
    accepted = time.monotonic() - started
    killer.join()
    states = Counter({"processing": count})
    while states["processing"] and time.monotonic() - started < PATIENCE:
        with ThreadPoolExecutor(8) as pool:
            states = Counter(
                pool.map(lambda one: asked(door, "GET", f"{url}/v1/inferences/{one[0]}").json()["state"], work)
            )
    rows = [(count, f"{accepted:.0f}", f"{time.monotonic() - started:.0f}", len(VICTIMS), dict(states))]
    machine.show("Requests while parts are killed", ("requests", "accepted, s", "answered, s", "kills", "states"), rows)
    if states["completed"] != count:
        raise SystemExit(1)


def log_in(url: str) -> requests.Session:
    """A session of the first account; the door's certificate is its own."""
    http = requests.Session()
    http.trust_env, http.verify = False, False
    http.mount("https://", requests.adapters.HTTPAdapter(pool_maxsize=SENDERS))
    body = {"name": "demo", "password": first_password().read_text().strip()}
    answer = http.post(f"{url}/v1/session", json=body, timeout=30)
    answer.raise_for_status()
    http.headers["X-CSRF-Token"] = answer.json()["csrf"]
    return http


def asked(http: requests.Session, method: str, url: str, body: bytes | None = None) -> requests.Response:
    """The answer, asked again until there is one: sending the same recording with the same id again is no mistake."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            answer = http.request(method, url, data=body, timeout=30)
            if answer.ok:
                return answer
            if answer.status_code not in (429, 500, 502, 503, 504):
                raise SystemExit(f"{answer.status_code}: {answer.text[:200]}")
        except requests.RequestException:
            pass
        time.sleep(0.5)
    raise SystemExit(f"{url}: no answer in {PATIENCE:.0f} s")


def kill() -> None:
    """SIGKILL the main process of each victim, one after the other."""
    for name in VICTIMS:
        time.sleep(EVERY)
        label = f"label=com.docker.compose.service={name}"
        for container in subprocess.check_output(["docker", "ps", "-q", "-f", label], text=True).split():
            found = subprocess.check_output(["docker", "inspect", "-f", "{{.State.Pid}}", container], text=True)
            subprocess.run(["kill", "-9", found.strip()], check=True)
            print(f"killed {name}", flush=True)


def sound(luck: np.random.Generator) -> bytes:
    """Three seconds of a buzzing voice, a WAV file; another for each draw."""
    at = np.arange(3 * RATE) / RATE
    pitch = 100 + 80 * luck.random()
    voice = sum(np.sin(2 * np.pi * pitch * k * at) / k for k in range(1, 12))
    wave = 0.05 * voice * (0.5 + 0.5 * np.sin(6 * np.pi * at)) + 0.002 * luck.standard_normal(len(at))
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


if __name__ == "__main__":
    main()
