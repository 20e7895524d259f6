"""Try an archive in a TorchServe of its own, of production's version and settings, before anybody else may meet it."""

import ctypes
import io
import json
import math
import random
import re
import signal
import socket
import subprocess
import sys
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import psutil

from serve import torchserve
from serve.transport import Late, Server
from spira_train.gate import Serving
from spira_train.outcome import BadInput, Exit, Refused, StepError, TryAgain
from spira_train.progress import say
from spira_train.store import digest_file, scratch

START_SECONDS = 90.0
# Each must get a 4xx: nothing at all, no sound, JSON without a recording, a WAV file without its samples.
BROKEN = (b"", b"no sound at all", b'{"audio": 1}', b"RIFF\x24\0\0\0WAVEfmt ")
# Memory that is taken once, not with each answer, is taken by then.
WARM_REQUESTS = 100
PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PORTS = ("inference", "management", "metrics", "grpc-inference", "grpc-management")
# What a handler died of, as Python's traceback ends in TorchServe's log of the workers; what TorchServe itself raises
# about it says less.
_FAULT = r"MODEL_LOG - (?!RuntimeError: 500 - )((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*)"


def bless(archive: Path, version: str, golden: Path, limits: Serving) -> dict[str, Any]:
    """Load `archive` into a server of its own and `examine` it; returns the infra blessing. The server is gone then."""
    with scratch("spira-sandbox-") as root:
        ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        inference, management = (f"http://127.0.0.1:{ports[api]}" for api in ("inference", "management"))
        server = Server(inference, management, root / "home" / "key_file.json")
        command = [sys.executable, "-m", "serve.launch", "--store", str(root / "models"), "--home", str(root / "home")]
        command += [part for api, port in ports.items() for part in (f"--{api}", str(port))]
        command += ["--workers", "1"]  # production's are each the same
        with (root / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_die_with_parent)
        try:
            _wait(server, process, root / "log")
            return examine(server, archive, version, golden, root / "models", limits)
        finally:
            _stop(process)


def examine(server: Server, archive: Path, version: str, golden: Path, store: Path, limits: Serving) -> dict[str, Any]:
    """Have `archive` loaded, asked for the golden recordings, for broken ones and for many; returns its blessing.

    store: the server's model store. The blessing holds no times, so that the same archive gets the same one. Raises
    `Refused`, with the reason, where it does not load, answers otherwise than validation found, too late, too slowly or
    with no number, takes broken input, dies or grows.
    """
    server = Server(server.inference, server.management, server.keys, server.name, limits.seconds)
    try:
        torchserve.register(server, archive, version, store)
        torchserve.verify(server, version, golden)
        for content in BROKEN:
            answer = torchserve.predict(server, content, version)
            if not 400 <= answer.status_code < 500:
                raise Refused(f"broken input ({content[:12]!r}) got {answer.status_code}, not a 4xx")
        found = torchserve.verify(server, None, golden, expected=version)
        if found["milliseconds"] > limits.milliseconds:
            raise Refused(
                f"the median answer to a golden recording took {found['milliseconds']:.0f} ms, "
                f"at most {limits.milliseconds:g} ms is allowed"
            )
        grown = _grown(server, version, limits, _noise(_shortest(archive)))
    except Late:
        raise Refused(_reason(server, archive, version, f"it gave no answer within {limits.seconds:g} s")) from None
    except Refused as error:
        raise Refused(_reason(server, archive, version, str(error))) from None
    say(
        f"package: the sandbox blessed {archive.name}: {found['milliseconds']:.0f} ms an answer, "
        f"{grown:+.1f} MiB after {limits.requests} more"
    )
    return {
        "blessing": "infra",
        "archive": digest_file(archive),
        "server": f"torchserve {installed('torchserve')}",
        "golden": found["recordings"],
        "tolerance": torchserve.TOLERANCE,
        "broken_inputs_refused": len(BROKEN),
        "limits": limits.model_dump(),
    }


def _grown(server: Server, version: str, limits: Serving, content: bytes) -> float:
    """MiB by which the process grew over many answers to `content`; raises `Refused` where it is too much."""

    def ask(number: int) -> None:
        answer = torchserve.predict(server, content, version, windows=True)
        if answer.status_code != 200:
            raise Refused(f"{number + 1} short recordings in a row: one got {torchserve.reason(answer)}")
        torchserve.probabilities(answer, f"{number + 1} short recordings in a row")

    with ThreadPoolExecutor(torchserve.BATCH) as pool:
        list(pool.map(ask, range(WARM_REQUESTS)))
        before = _memory(server, version)
        list(pool.map(ask, range(limits.requests)))
        after = _memory(server, version)
    if before.keys() != after.keys():
        raise Refused(f"its process died within {limits.requests} short recordings and was replaced")
    grown = (sum(after.values()) - sum(before.values())) / (1 << 20)
    if grown > limits.mebibytes:
        raise Refused(
            f"its process grew by {grown:.0f} MiB over {limits.requests} short recordings, "
            f"at most {limits.mebibytes:g} MiB is allowed"
        )
    return grown


def _memory(server: Server, version: str) -> dict[int, int]:
    """Process -> bytes that it holds."""
    with suppress(psutil.NoSuchProcess):
        return {pid: psutil.Process(pid).memory_info().rss for pid in torchserve.processes(server, version)}
    return {}


def _shortest(archive: Path) -> int:
    """Whole seconds that a recording must have for this archive to take it."""
    limits = json.loads(torchserve.read_member(archive, "lineage.json")).get("limits", {})
    return max(1, math.ceil(limits.get("min_seconds", 1)))


def _noise(seconds: int, rate: int = 16_000) -> bytes:
    """Noise as a WAV file, the same each time."""
    with io.BytesIO() as file:
        with wave.open(file, "wb") as out:
            out.setparams((1, 2, rate, 0, "NONE", ""))
            out.writeframes(random.Random(0).randbytes(2 * seconds * rate))  # noqa: S311 - noise, no secret
        return file.getvalue()


def _reason(server: Server, archive: Path, version: str, text: str) -> str:
    """Why there is no blessing, with what the handler died of where it did."""
    log = server.keys.parent / "logs" / "model_log.log" if server.keys else None
    said = log.read_text(errors="replace").splitlines() if log and log.is_file() else []
    faults = [found[1] for line in said if version in line and (found := re.search(_FAULT, line))]
    ending = f" (its log: {faults[-1][:200]})" if faults else ""
    return f"{archive.name}: no infra blessing from the sandbox TorchServe: {text}{ending}"


def _die_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the packaging step dies, however it dies; it outlives the exec of Java."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its workers; one that hangs would outlive it."""
    workers = []
    with suppress(psutil.NoSuchProcess):
        workers = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.kill()


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            kind: type[StepError] = BadInput if process.returncode == Exit.BAD_INPUT else TryAgain
            raise kind(f"the sandbox TorchServe did not start: {lines[-1]}")
        try:
            torchserve.status(server)
            return
        except TryAgain:
            if time.monotonic() > deadline:
                raise TryAgain(
                    f"the sandbox TorchServe did not start within {START_SECONDS:.0f} s; try again"
                ) from None
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
