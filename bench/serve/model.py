"""A real model behind a real gateway and TorchServe, for benchmarks of serving."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from local import stack
from serve.gateway import clients
from serve.torchserve import Server
from spira_train import config as configuration
from spira_train import extract, featurise, package, register, simulate, train, validate
from spira_train.config import ExtractConfig
from spira_train.registry import Registry
from spira_train.store import Lake, write_atomic

# Of `audio.decode`: the default configuration's, as an archive has them.
LIMITS = ExtractConfig().model_dump(include={"min_seconds", "max_seconds", "silence_dbfs", "max_clipped"})


@dataclass(frozen=True)
class Serving:
    """What runs: the packaged run, its server, model store, MLflow, gateway and the gateway's key."""

    run: Path
    server: Server
    models: Path
    mlflow: str
    gateway: str
    key: str


@contextmanager
def serving(folder: Path, preset: str) -> Iterator[Serving]:
    """MLflow, TorchServe and gateway under `folder`, serving a model of `preset`; stopped at the end."""
    os.environ["SPIRA_VAR"] = str(folder / "var")
    run = trained(folder, preset)
    running = stack.up(("mlflow", "torchserve", "gateway"))
    try:
        places = running["places"]
        server = Server(places["SPIRA_INFERENCE"], places["SPIRA_MANAGEMENT"], Path(places["SPIRA_KEYS"]))
        models, mlflow = Path(places["SPIRA_MODELS"]), places["MLFLOW_TRACKING_URI"]
        register.run(run=run, config=configuration.load(run), models=models, mlflow=mlflow, server=server)
        # the first client, demo, may ask once a second
        key = clients.add(folder / "var/gateway/clients.json", "bench", "1000000/minute")
        yield Serving(run, server, models, mlflow, running["gateway"], key)
    finally:
        stack.down()


def command(it: Serving, name: str, *words: str) -> list[str]:
    """`spira-train NAME WORDS` on what runs, as people type it."""
    places = {"models": it.models, "mlflow": it.mlflow, "keys": it.server.keys}
    places |= {"inference": it.server.inference, "management": it.server.management}
    flags = [word for flag, place in places.items() for word in (f"--{flag}", str(place))]
    return [str(Path(sys.executable).with_name("spira-train")), name, *words, *flags]


def trained(folder: Path, preset: str, *, seed: int = 42, mlflow: str = "") -> Path:
    """A packaged run with the network of `preset`, trained for one epoch; mlflow: where the champion is on record."""
    lake, run = Lake(str(folder / "lake")), folder / "run"
    settings = simulate.read_settings({"subjects": 120, "days": 1, "start": "2026-11-01"})
    simulate.run(lake=lake.uri, settings=settings)
    overrides = {"partition": lake.partitions()[-1], "train.epochs": 1, "data.min_subjects": 1, "noise.variants": 1}
    overrides |= {"seed": seed}
    config = configuration.resolve(configuration.preset_files(preset), overrides)
    write_atomic(run / "config.json", config.canonical().encode())
    extract.run(lake=lake, config=config, partition=config.partition)
    featurise.run(lake=lake, config=config, partition=config.partition)
    train.run(run=run, lake=lake, config=config)
    gate = folder / "gate.yaml"
    gate.write_text("min_per_class: 2\nnoise: {inserts: 1}\nlimits: [{probe: clean, metric: accuracy, min: 0}]\n")
    validate.run(run=run, lake=lake, config=config, gate=gate, registry=Registry(mlflow) if mlflow else None)
    package.run(run=run, config=config)
    return run


def recording(run: Path, seconds: float) -> bytes:
    """The bytes of a WAV file of so many seconds of (simulated) speech at 16 kHz."""
    speech, rate = soundfile.read(run / "validate" / "golden" / "00.wav", dtype="float32")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.resize(speech, int(seconds * rate)), rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
