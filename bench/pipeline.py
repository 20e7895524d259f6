"""Seconds, and multiples of real time, of every step of the pipeline on a simulated lake.

    python -m bench.pipeline [--subjects 40] [--days 3] [--epochs 3]

Each step is called as a function in this process, so a figure holds the work alone; a step as a command adds the
start of the interpreter and its imports (last row). TorchServe and MLflow are real. The gate is asked with one limit
that any model keeps, since a few epochs on little data need not please the real one.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import machine
from local import stack
from serve.torchserve import Server
from spira_train import config as configuration
from spira_train import extract, featurise, package, register, simulate, train, validate
from spira_train.store import Lake, write_atomic


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--subjects", type=int, default=40)
    options.add_argument("--days", type=int, default=3)
    options.add_argument("--epochs", type=int, default=3)
    chosen = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="spira-bench-"))
    try:
        rows = measure(folder, chosen.subjects, chosen.days, chosen.epochs)
    finally:
        shutil.rmtree(folder)
    title = f"Pipeline, {chosen.days} partitions of {chosen.subjects} subjects, preset fast"
    machine.show(title, ("step", "seconds", "x real time", "what"), rows)


def measure(folder: Path, subjects: int, days: int, epochs: int) -> list[tuple[str, str, str, str]]:
    """One row a step: (name, seconds, multiple of real time, what was done)."""
    lake, run = Lake(str(folder / "lake")), folder / "run"
    rows = []

    def row(name: str, work: Callable[[], Any], what: Callable[[Any], str], audio: float = 0.0) -> Any:
        started = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - started
        rows.append((name, f"{seconds:.2f}", f"{audio / seconds:,.0f}" if audio else "", what(result)))
        return result

    settings = simulate.read_settings({"subjects": subjects, "days": days, "start": "2026-11-01"})
    started = time.perf_counter()
    made = simulate.run(lake=lake.uri, settings=settings)
    seconds, audio = time.perf_counter() - started, made["audio_seconds"]
    rows.append(("simulate", f"{seconds:.2f}", f"{audio / seconds:,.0f}", f"{made['recordings']} recordings"))
    keys = lake.partitions()
    overrides = {"partition": keys[-1], "train.epochs": epochs, "train.patience": 0, "data.min_subjects": 1}
    config = configuration.resolve(configuration.preset_files("fast"), overrides)
    write_atomic(run / "config.json", config.canonical().encode())

    def each(step: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
        return [step(lake=lake, config=config, partition=key) for key in keys]

    def windows(reports: list[dict[str, Any]]) -> str:
        return f"{sum(r['summary']['windows'] * (1 + r['summary']['variants']) for r in reports)} windows"

    def count(reports: list[dict[str, Any]]) -> str:
        return f"{sum(r['summary']['accepted'] for r in reports)} recordings"

    row("extract, cold", lambda: each(extract.run), count, audio)
    row("extract, cached", lambda: each(extract.run), count, audio)
    row("features, cold", lambda: each(featurise.run), windows, audio)
    row("features, cached", lambda: each(featurise.run), windows, audio)
    started = time.perf_counter()
    trained = train.run(run=run, lake=lake, config=config)["summary"]
    one = (time.perf_counter() - started) / trained["epochs"]
    rows.append(("train, one epoch", f"{one:.2f}", "", f"{trained['windows']['train']} windows, {config.model.name}"))
    gate = folder / "gate.yaml"
    gate.write_text("min_per_class: 2\nnoise: {inserts: 1}\nlimits: [{probe: clean, metric: accuracy, min: 0}]\n")
    row(
        "validate",
        lambda: validate.run(run=run, lake=lake, config=config, gate=gate),
        lambda report: f"{sum(report['summary']['test_set'].values())} recordings, clean and in noise",
    )
    os.environ["SPIRA_VAR"] = str(folder / "var")
    running = stack.up(("mlflow", "torchserve"))
    try:
        places = running["places"]
        server = Server(places["SPIRA_INFERENCE"], places["SPIRA_MANAGEMENT"], Path(places["SPIRA_KEYS"]))
        secret = Path(places["SPIRA_SIGNING_KEY"])
        row("package, with its sandbox", lambda: package.run(run=run, config=config, key=secret), _megabytes)
        address = {"models": Path(places["SPIRA_MODELS"]), "mlflow": places["MLFLOW_TRACKING_URI"], "server": server}
        address["key"] = Path(places["SPIRA_VERIFY_KEY"])
        row("register", lambda: register.run(run=run, config=config, **address), lambda r: r["summary"]["version"])
    finally:
        stack.down()
    command = [str(Path(sys.executable).with_name("spira-train")), "train", "--run", str(run), "--lake", lake.uri]
    row("train, as a command, cached", lambda: subprocess.run(command, check=True, capture_output=True), lambda _: "")
    return rows


def _megabytes(report: dict[str, Any]) -> str:
    return f"{report['summary']['bytes'] / 1e6:.1f} MB"


if __name__ == "__main__":
    main()
