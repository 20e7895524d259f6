"""Tiny runs for the tests of packaging and serving: random weights, finished as the steps leave them."""

import io
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import save

from spira_train import inference, package
from spira_train.audio import as_float, decode
from spira_train.config import Config
from spira_train.gate import Serving
from spira_train.model import build
from spira_train.step import perform
from spira_train.store import digest_file, digest_json, local_lake

LIMITS = {"min_seconds": 0.5, "max_seconds": 120, "silence_dbfs": -60, "max_clipped": 0.02}


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wav(seconds: float = 2.0, seed: int = 0, level: float = 0.1, rate: int = 16_000) -> bytes:
    """A noisy tone as the bytes of a WAV file."""
    rng = np.random.default_rng(seed)
    time_axis = np.arange(int(seconds * rate)) / rate
    sound = level * (np.sin(2 * np.pi * (200 + 40 * seed) * time_axis) + 0.3 * rng.standard_normal(len(time_axis)))
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def make_run(folder: Path, seed: int = 0, partition: str = "2026-11-05") -> tuple[Path, Config]:
    """A run with a finished `train/` and a blessed `validate/`, as those steps leave them; random weights."""
    torch.set_num_threads(1)
    run, config = folder / f"{partition}-{seed:08d}", Config(partition=partition, seed=seed)

    def train(out: Path) -> dict[str, Any]:
        torch.manual_seed(seed)
        hyper = {"name": "spira_small", "frames": 401, "coefficients": 40, "dropout": 0.0}
        (out / "model.safetensors").write_bytes(save(build(**hyper).state_dict()))
        description = {"network": hyper, "features": config.features.model_dump(mode="json")}
        description |= {"decision": config.decision.model_dump(mode="json"), "partition": partition}
        (out / "model.json").write_text(json.dumps(description))
        return {"partitions": [partition], "recordings": {"train": 8, "validation": 4}}

    trained = perform("train", f"train-{seed}", *local_lake(run / "train"), train, {})

    def validate(out: Path) -> dict[str, Any]:
        binding = {"model": trained["outputs"]["model.safetensors"], "description": trained["outputs"]["model.json"]}
        interval = {"value": 0.9, "low": 0.8, "high": 0.95}
        probe = dict.fromkeys(("accuracy", "sensitivity", "specificity", "f1", "auc"), interval)
        (out / "metrics.json").write_text(json.dumps({"clean": probe | {"confusion": [[4, 0], [0, 4]]}}))
        verdict = {"verdict": "blessed", "champion": None, "champion_archive": None}
        (out / "verdict.json").write_text(json.dumps(verdict))
        blessing = {"blessing": "quality", "verdict": "blessed", "reasons": [], **binding}
        (out / "blessing.json").write_text(json.dumps(blessing))
        (out / "golden").mkdir()
        predictor, entries = inference.load(run / "train"), []
        for number in range(3):
            content = wav(2.0 + 2 * number, seed=number)
            (out / "golden" / f"{number:02d}.wav").write_bytes(content)
            (answer,) = predictor.predict([torch.from_numpy(as_float(decode(content, **LIMITS)))])
            found = {"probability": answer.probability, "windows": answer.windows}
            entries.append({"file": f"{number:02d}.wav", **found})
        (out / "golden" / "golden.json").write_text(json.dumps(entries))
        return {"verdict": "blessed", "test_set": {"controls": 4, "patients": 4}}

    perform("validate", f"validate-{seed}", *local_lake(run / "validate"), validate, {})
    return run, config


def held_against(run: Path, version: str | None, archive: str | None) -> None:
    """Let validation have held the run against this champion; neither its blessing nor its archive says so."""
    file, report = run / "validate" / "verdict.json", run / "validate" / "report.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"champion": version, "champion_archive": archive}))
    _reported(report, file)
    _packaged_with(run)


def pack(run: Path, config: Config, key: Path | None = None) -> dict[str, Any]:
    """The package step with a sandbox that blesses everything: tests/serve/test_sandbox.py has the real one."""

    def bless(archive: Path, version: str, golden: Path, limits: Serving) -> dict[str, Any]:
        return {"blessing": "infra", "archive": digest_file(archive)}

    return package.run(run=run, config=config, sandbox=bless, key=key)


def packaged(
    folder: Path, seed: int = 0, partition: str = "2026-11-05", key: Path | None = None
) -> tuple[Path, Config, dict[str, Any]]:
    """`make_run`, packaged without a sandbox; the last part is package.json."""
    run, config = make_run(folder, seed, partition)
    pack(run, config, key)
    return run, config, json.loads((run / "package" / "package.json").read_text())


def found_by_validate(run: Path, name: str, content: dict[str, Any]) -> None:
    """Let validation have found more: `content` is added to what the JSON file `name` of `validate/` holds."""
    file, report = run / "validate" / name, run / "validate" / "report.json"
    before = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(before | content))
    _reported(report, file)
    _packaged_with(run)


def _reported(report: Path, file: Path) -> None:
    """Let a step have reported `file` as it is now."""
    facts = json.loads(report.read_text())
    facts["outputs"][file.name] = digest_file(file)
    report.write_text(json.dumps(facts))


def _packaged_with(run: Path) -> None:
    """Let the run, if it is packaged, have been packaged with what validation says now."""
    file = run / "package" / "package.json"
    if file.is_file():
        found = json.loads((run / "validate" / "report.json").read_text())["outputs"]
        file.write_text(json.dumps(json.loads(file.read_text()) | {"evidence": digest_json(found)}))
        _reported(run / "package" / "report.json", file)


def archive_of(run: Path) -> Path:
    (found,) = (run / "package").glob("*.mar")
    return found
