"""Latency and throughput of serving, on two cores, beside the same work in process, a first handler, and LitServe; and
beside a handler that does nothing, which is what TorchServe itself takes.

    python -m bench.serve [--seconds 10] [--clients 1 8 64] [--json FILE]

One model, trained for one epoch on a simulated lake: speed does not depend on what it learned. wrk (Debian: `wrk`) is
the load; it runs on the same two cores as what it loads. Answers other than 200 are counted apart and are no
throughput. LitServe is measured where it is installed (`make bench-serve` does that).
"""

import argparse
import base64
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import psutil
import requests
import torch

from bench import machine
from bench.serve.model import LIMITS, recording, serving
from local.ports import any_free
from serve.torchserve import BATCH, BATCH_DELAY_MS
from spira_train import audio, inference, memory
from spira_train.store import write_atomic

HERE = Path(__file__).resolve().parent
OTHERS = HERE.parents[1] / "var/bench/others"
Row = dict[str, Any]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=10.0, help="of load for each row")
    options.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    options.add_argument("--audio", type=float, nargs="+", default=[4.0, 10.0], help="seconds of a recording")
    options.add_argument("--preset", default="default")
    options.add_argument("--json", type=Path, help="keep the rows there")
    chosen = options.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("wrk: not found; install it (Debian: apt-get install wrk)")
    folder = Path(tempfile.mkdtemp(prefix="spira-bench-"))
    try:
        rows = list(measure(folder, chosen))
    finally:
        shutil.rmtree(folder)
    if chosen.json:
        write_atomic(chosen.json, json.dumps({"machine": machine.describe(), "rows": rows}, indent=1).encode())
    names = ("audio", "clients", "side", "p50", "p95", "p99", "per_second", "refused", "failed")
    cells = [[f"{row[n]:.1f}" if isinstance(row[n], float) else row[n] for n in names] for row in rows]
    title = f"Serving, preset {chosen.preset}: milliseconds, answers a second"
    machine.show(title, ("audio s", "clients", "side", "p50", "p95", "p99", "answers/s", "not 200", "failed"), cells)


def measure(folder: Path, chosen: argparse.Namespace) -> Iterator[Row]:
    """One row for each length of recording, side and number of clients."""
    with serving(folder, chosen.preset) as it:
        keys = it.server.keys
        assert keys is not None  # noqa: S101 - for the type checker
        for name, batch in (("naive", "1"), ("empty", str(BATCH))):
            archive = other_archive(next((it.run / "package").glob("*.mar")), it.models, name)
            answer = requests.post(
                f"{it.server.management}/models",
                params={"url": archive.name, "synchronous": "true", "batch_size": batch}
                # one worker for the first handler: with two, whose threads fight for two cores, it is far slower
                | ({"max_batch_delay": str(BATCH_DELAY_MS)} if name == "empty" else {"initial_workers": "1"}),
                headers={"Authorization": f"Bearer {json.loads(keys.read_text())['management']['key']}"},
                timeout=120,
            )
            answer.raise_for_status()
        for seconds in chosen.audio:
            sound = recording(it.run, seconds)
            token = json.loads(keys.read_text())["inference"]["key"]
            sides = {
                "handler": (f"{it.server.inference}/predictions/spira", "application/octet-stream", token, sound),
                "naive": (f"{it.server.inference}/predictions/naive", "application/octet-stream", token, sound),
                "empty": (f"{it.server.inference}/predictions/empty", "application/octet-stream", token, sound),
                "gateway": (f"{it.gateway}/v1/predict", "audio/wav", it.key, sound),
            }
            for call in sides.values():  # a server lives for weeks: Java has long compiled what it runs
                load(folder, *call, 8, 4)
            yield in_process(it.run, sound, seconds)
            for clients in chosen.clients:
                for side, call in sides.items():
                    yield {"audio": seconds, "side": side} | load(folder, *call, clients, chosen.seconds)
            if (OTHERS / "litserve").is_dir():
                with litserve(it.run) as url:
                    text = json.dumps({"audio": base64.b64encode(sound).decode()}).encode()
                    for clients in chosen.clients:
                        found = load(folder, url, "application/json", "", text, clients, chosen.seconds)
                        yield {"audio": seconds, "side": "litserve"} | found


def other_archive(ours: Path, models: Path, name: str) -> Path:
    """The archive with the handler of `<name>_handler.py` instead of ours, in the model store."""
    with ZipFile(ours) as source, ZipFile(other := models / f"{name}-1.mar", "w") as out:
        for member in source.namelist():
            content = source.read(member)
            if member == "handler.py":
                content = (HERE / f"{name}_handler.py").read_bytes()
            if member == "MAR-INF/MANIFEST.json":
                manifest = json.loads(content)
                manifest["model"] |= {"modelName": name, "modelVersion": "1"}
                content = json.dumps(manifest).encode()
            out.writestr(member, content)
    return other


def in_process(run: Path, sound: bytes, seconds: float, count: int = 300) -> Row:
    """The same work without a server: decode, features, network, one thread, memory kept as in the handler."""
    torch.set_num_threads(1)
    memory.keep()
    predictor, times = inference.load(run / "train"), []
    for _ in range(count):
        started = time.perf_counter()
        predictor.predict([torch.from_numpy(audio.as_float(audio.decode(sound, **LIMITS)))])
        times.append(1000 * (time.perf_counter() - started))
    cuts = statistics.quantiles(times, n=100)
    found = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "per_second": 1000 * count / sum(times)}
    return {"audio": seconds, "side": "in process", "clients": 1, **found, "refused": 0, "failed": 0}


def load(folder: Path, url: str, kind: str, token: str, body: bytes, clients: int, seconds: float) -> Row:
    """wrk's figures after a short warm-up."""
    (folder / "body").write_bytes(body)
    environment = os.environ | {"BENCH_BODY": str(folder / "body"), "BENCH_TYPE": kind, "BENCH_TOKEN": token}
    script = ["--latency", "--timeout", "30s", "-s", str(HERE / "post.lua"), url]
    for duration in (2, seconds):
        # wrk leaves without its last answers, which are still being made: they would stand in the way of the next
        time.sleep(1)
        command = ["wrk", "-t1", f"-c{clients}", f"-d{int(duration)}s", *script]
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    found = json.loads(said.splitlines()[-1])
    good = (found["requests"] - found["refused"]) / found["seconds"]
    shown = {name: found[name] for name in ("p50", "p95", "p99", "refused", "failed")}
    return {"clients": clients, "per_second": good, **shown}


@contextmanager
def litserve(run: Path) -> Iterator[str]:
    """LitServe with the model of `run`; its address."""
    port = any_free({})
    environment = os.environ | {"PYTHONPATH": f"{HERE.parents[1]}:{OTHERS}"}
    command = [sys.executable, str(HERE / "litserve_server.py"), str(run / "train"), str(port)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 90
            while True:
                try:
                    if requests.get(f"{url}/health", timeout=2).status_code == 200:
                        break
                except requests.RequestException:
                    pass
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit("LitServe did not start")
                time.sleep(0.3)
            yield f"{url}/predict"
        finally:
            # its workers outlive it
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()


if __name__ == "__main__":
    main()
