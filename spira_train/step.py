"""The frame of every step: fingerprint, cache hit, atomic result, report, one line of JSON at the end."""

import ast
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Collection, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import fsspec

from spira_train.outcome import Exit
from spira_train.store import REPORT, digest_bytes, digest_folder, digest_json, publish, read_report

PACKAGE = Path(__file__).resolve().parent
# The frame and the wording of messages do not shape results; everything else that a step imports does.
_NEUTRAL = {"config", "outcome", "step", "store", "progress"}
_PARSING = Lock()  # CPython 3.11 counts the depth of a syntax tree in one place for all threads, and trips over it


def fingerprint(
    step: str, *, module: str, config: Any, inputs: Mapping[str, str], libraries: tuple[str, ...] = ()
) -> str:
    """What a step's result depends on, as one SHA-256.

    module: the step's module in this package; its source and that of all it imports from here count as code.
    config: the part of the configuration that the step uses. inputs: name -> digest.
    libraries: distributions whose version can change the bytes.
    """
    return digest_json(
        {
            "step": step,
            "code": code_digest(module),
            "config": config,
            "inputs": dict(inputs),
            "libraries": {name: version(name) for name in libraries},
        }
    )


def perform(
    step: str,
    identity: str,
    fs: fsspec.AbstractFileSystem,
    destination: str,
    work: Callable[[Path], dict[str, Any]],
    inputs: Mapping[str, str],
) -> dict[str, Any]:
    """Do `work` into `destination` unless a finished result with the fingerprint `identity` stands there.

    work: writes files into the folder it is given and returns its summary (counts, metrics; `exit` and `message`
    where it ends in a verdict other than done). Returns the report, with `cached` set to True or False.
    """
    finished = read_report(fs, destination)
    if finished and finished.get("fingerprint") == identity:
        return finished | {"cached": True}
    started = time.perf_counter()
    with publish(fs, destination) as folder:
        summary = work(folder)
        report = {
            "step": step,
            "fingerprint": identity,
            "inputs": dict(inputs),
            "outputs": digest_folder(folder),
            "summary": summary,
            "seconds": round(time.perf_counter() - started, 3),
            "versions": versions(),
        }
        (folder / REPORT).write_text(json.dumps(report, indent=1, sort_keys=True, allow_nan=False))
    return report | {"cached": False}


def emit(step: str, exit: Exit = Exit.DONE, message: str = "", **facts: Any) -> None:
    """Print the step's last line: one line of JSON, which is its XCom."""
    line = {"step": step, "exit": int(exit), "outcome": exit.name.lower(), "message": message} | facts
    sys.stderr.flush()
    print(json.dumps(line, allow_nan=False), flush=True)


@cache
def code_digest(module: str) -> str:
    """Digest of the source of `module` and of every module of this package that it imports, in turn."""
    return digest_json({n: digest_bytes((PACKAGE / f"{n}.py").read_bytes()) for n in modules(module, without=_NEUTRAL)})


def modules(*names: str, without: Collection[str] = ()) -> list[str]:
    """`names` and every module of this package that they import, in turn, sorted; `without` some and their imports."""
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in seen and name not in without:
            seen.add(name)
            waiting += _imports((PACKAGE / f"{name}.py").read_bytes())
    return sorted(seen)


def versions() -> dict[str, str]:
    """Versions that a reader of a report wants to know; image and git revision where a container was told them."""
    names = ("spira-train", "torch", "torchaudio", "numpy", "soundfile")
    told = {"image": os.environ.get("SPIRA_IMAGE_DIGEST"), "revision": os.environ.get("SPIRA_REVISION")}
    return (
        {"python": platform.python_version()}
        | {name: version(name) for name in names}
        | {name: value for name, value in told.items() if value}
    )


def _imports(source: bytes) -> list[str]:
    found = []
    with _PARSING:
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "spira_train":
            dotted = node.module.split(".")
            found += [dotted[1]] if len(dotted) > 1 else [alias.name for alias in node.names]
    return [name for name in found if (PACKAGE / f"{name}.py").exists()]
