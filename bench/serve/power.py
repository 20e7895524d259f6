"""What is served after a power cut: `python -m bench.serve.power [--cuts 10]`.

A rollback begins, and at a random moment of it every process is killed at once: the command, TorchServe, its workers,
MLflow, gateway. Then the stack starts again, and `spira-train reconcile` runs, as the DAG `spira_upkeep` runs it.
One row a cut. Ends with exit code 1 unless the server and the registry agree each time, on a version that answers.
"""

import argparse
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from bench import machine
from bench.serve.model import Serving, command, recording, serving, trained
from local import stack
from serve import torchserve
from serve.torchserve import Server
from spira_train import config as configuration
from spira_train import register
from spira_train.registry import CHAMPION, Registry
from spira_train.rng import Random

LATEST = 5.0  # seconds after which the command, which loads the other version first, has ended


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cuts", type=int, default=10)
    chosen = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="spira-bench-"))
    try:
        with serving(folder, "fast") as it:
            run = trained(folder / "second", "fast", seed=43, mlflow=it.mlflow)
            where = {"models": it.models, "mlflow": it.mlflow, "server": it.server}
            first = torchserve.status(it.server)["default"]
            register.run(run=run, config=configuration.load(run), **where)
            versions = {first, torchserve.status(it.server)["default"]}
            sound, moments = recording(it.run, 4), Random(0).stream("power").uniform(0, LATEST, chosen.cuts)
            rows = []
            for moment in moments:
                it, row = cut(it, versions, sound, float(moment))
                rows.append(row)
    finally:
        shutil.rmtree(folder)
    columns = ("cut after, s", "answered before", "after the start", "reconciled", "MLflow's champion", "start, s")
    machine.show("Power cuts in the middle of a rollback", columns, rows)
    if any(row[3] != row[4] for row in rows):
        raise SystemExit(1)


def cut(it: Serving, versions: set[str], sound: bytes, moment: float) -> tuple[Serving, tuple[str, ...]]:
    """Kill everything `moment` seconds into a rollback, start again; what runs then, and which version answers when."""
    before = served(it, sound)
    (to,) = versions - {before}
    words = command(it, "rollback", "--to", to)
    rollback = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(moment)
    victims = [rollback.pid, *stack.members()]
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)  # nobody may see the others go
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    rollback.wait()
    (stack.var() / "stack.json").unlink()  # a pid of before the cut means nothing after it
    started = time.monotonic()
    places = stack.up(("mlflow", "torchserve", "gateway"))["places"]  # ports may be others
    server = Server(places["SPIRA_INFERENCE"], places["SPIRA_MANAGEMENT"], Path(places["SPIRA_KEYS"]))
    it = replace(it, server=server, mlflow=places["MLFLOW_TRACKING_URI"])
    took, after = time.monotonic() - started, served(it, sound)
    subprocess.run(command(it, "reconcile"), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    registry = Registry(it.mlflow)
    champion = registry.versions()[registry.aliases()[CHAMPION]].tags["version"]
    return it, (f"{moment:.1f}", before, after, served(it, sound), champion, f"{took:.0f}")


def served(it: Serving, sound: bytes) -> str:
    """The version that answers."""
    answer = torchserve.predict(it.server, sound)
    answer.raise_for_status()
    return str(answer.json()["model"]["version"])


if __name__ == "__main__":
    main()
