"""Versions change places under load: `python -m bench.serve.rollback [--requests 10000]`.

wrk asks the default path all the while; meanwhile `spira-train rollback --to` is run as people run it, back and forth.
One row a change: seconds of the command, and seconds from its start until the other version answers. Nothing may fail.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from bench import machine
from bench.serve.__main__ import load
from bench.serve.model import Serving, command, recording, serving, trained
from serve import torchserve
from spira_train import config as configuration
from spira_train import register


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--requests", type=int, default=10_000)
    options.add_argument("--clients", type=int, default=4)
    chosen = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="spira-bench-"))
    try:
        rows, asked, lost = measure(folder, chosen.requests, chosen.clients)
    finally:
        shutil.rmtree(folder)
    title = f"Changes of the default version under load: {asked} requests, {lost} failed"
    machine.show(title, ("to", "command, s", "the other answers after, s"), rows)
    if lost:
        raise SystemExit(1)


def measure(folder: Path, requests: int, clients: int) -> tuple[list[tuple[str, str, str]], int, int]:
    """(rows, requests answered, requests that were not answered with 200)."""
    with serving(folder, "fast") as it:
        first = torchserve.status(it.server)["default"]
        run = trained(folder / "second", "fast", seed=43, mlflow=it.mlflow)
        where = {"models": it.models, "mlflow": it.mlflow, "server": it.server}
        register.run(run=run, config=configuration.load(run), **where)
        second = torchserve.status(it.server)["default"]
        sound, keys = recording(it.run, 4), it.server.keys
        assert keys is not None  # noqa: S101 - for the type checker
        token = json.loads(keys.read_text())["inference"]["key"]
        url = f"{it.server.inference}/predictions/{it.server.name}"
        found: list[dict] = []
        stop = threading.Event()

        def ask() -> None:
            while sum(round(one["per_second"] * 10) for one in found) < requests:
                found.append(load(folder, url, "application/octet-stream", token, sound, clients, 10))
            stop.set()

        caller, rows, to = threading.Thread(target=ask), [], first
        caller.start()
        while not stop.is_set():
            rows.append(change(it, to, sound))
            to = second if to == first else first
            stop.wait(5)
        caller.join()
    answered = sum(round(one["per_second"] * 10) for one in found)
    return rows, answered, sum(one["refused"] + one["failed"] for one in found)


def change(it: Serving, to: str, sound: bytes) -> tuple[str, str, str]:
    """Run the command, and watch from when on the other version answers."""
    words = command(it, "rollback", "--to", to)
    started = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ.copy()) as process:
        while torchserve.predict(it.server, sound).json()["model"]["version"] != to:
            if process.poll():
                raise SystemExit(process.communicate()[0].decode())
        answered = time.perf_counter() - started
        process.wait()
    return to, f"{time.perf_counter() - started:.2f}", f"{answered:.2f}"


if __name__ == "__main__":
    main()
