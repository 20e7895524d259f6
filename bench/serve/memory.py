"""Whether serving keeps its memory: `python -m bench.serve.memory [--requests 100000]`.

wrk asks from eight connections; after each tenth of the requests the resident memory of both workers, of TorchServe's
own process and of the gateway is read. Half of the requests go through the gateway, which passes them on.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import psutil

from bench import machine
from bench.serve.__main__ import load
from bench.serve.model import Serving, recording, serving
from bench.workers import workers

CLIENTS = 8


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--requests", type=int, default=100_000)
    chosen = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="spira-bench-"))
    try:
        with serving(folder, "fast") as it:
            rows, lost = measure(folder, it, chosen.requests)
    finally:
        shutil.rmtree(folder)
    title = f"Resident memory, MiB, over {rows[-1][0]} requests; {lost} not answered with 200"
    machine.show(title, ("requests", *("worker" for _ in rows[0][3:]), "TorchServe", "gateway"), rows)


def measure(folder: Path, it: Serving, requests: int) -> tuple[list[tuple[int, ...]], int]:
    """(rows of requests and MiB, requests that failed)."""
    assert it.server.keys is not None  # noqa: S101 - for the type checker
    token = json.loads(it.server.keys.read_text())["inference"]["key"]
    sound, watched = recording(it.run, 2.0), processes(it)
    direct = (f"{it.server.inference}/predictions/{it.server.name}", "application/octet-stream", token, sound)
    through = (f"{it.gateway}/v1/predict", "audio/wav", it.key, sound)
    rows, asked, lost = [(0, *memory(watched))], 0, 0
    while asked < requests:
        target = requests * len(rows) // 10
        for call in (direct, through):
            while asked < target - (requests // 20 if call is direct else 0):
                found = load(folder, *call, CLIENTS, 10)
                asked += round(found["per_second"] * 10)  # and those of the warm-up, which wrk does not count here
                lost += found["refused"] + found["failed"]
        rows.append((asked, *memory(watched)))
    return rows, lost


def processes(it: Serving) -> list[psutil.Process]:
    """The workers, the process of TorchServe that started them, and the gateway."""
    found = [psutil.Process(pid) for pid in sorted(workers(it.models.parent))]
    frontend = found[0].parent()
    port = int(it.gateway.rpartition(":")[2])
    listens = {c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port}
    assert frontend is not None  # noqa: S101 - for the type checker
    return [*found, frontend, psutil.Process(listens.pop())]


def memory(watched: list[psutil.Process]) -> tuple[int, ...]:
    """MiB of each."""
    return tuple(round(process.memory_info().rss / 2**20) for process in watched)


if __name__ == "__main__":
    main()
