"""Try an archive in a TorchServe of its own, of the same version and settings, before anybody else may meet it."""

import ctypes
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from serve import torchserve
from serve.torchserve import Server
from spira_train.outcome import BadInput, Exit, Refused, StepError, TryAgain
from spira_train.store import digest_file, scratch

START_SECONDS = 90.0
# Each must get a 4xx: nothing at all, no sound, JSON without a recording, a WAV file without its samples.
BROKEN = (b"", b"no sound at all", b'{"audio": 1}', b"RIFF\x24\0\0\0WAVEfmt ")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PORTS = ("inference", "management", "metrics", "grpc-inference", "grpc-management")


def bless(archive: Path, version: str, golden: Path) -> dict[str, Any]:
    """Load `archive`, ask it for the golden recordings and for broken ones; returns the infra blessing.

    Raises `Refused` where it does not load, answers otherwise than validation found, or takes broken input; what it
    returns holds no times, so that the same archive gets the same blessing. The server is gone afterwards.
    """
    with scratch("spira-sandbox-") as root:
        ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        inference, management = (f"http://127.0.0.1:{ports[api]}" for api in ("inference", "management"))
        server = Server(inference, management, root / "home" / "key_file.json")
        command = [sys.executable, "-m", "serve.launch", "--store", str(root / "models"), "--home", str(root / "home")]
        command += [part for api, port in ports.items() for part in (f"--{api}", str(port))]
        with (root / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_die_with_parent)
        try:
            _wait(server, process, root / "log")
            return _examine(server, archive, version, golden, root / "models")
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _die_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the packaging step dies, however it dies; it outlives the exec of Java."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _examine(server: Server, archive: Path, version: str, golden: Path, store: Path) -> dict[str, Any]:
    try:
        torchserve.register(server, archive, version, store)
        found = torchserve.verify(server, version, golden)
        for content in BROKEN:
            answer = torchserve.predict(server, content, version)
            if not 400 <= answer.status_code < 500:
                raise Refused(f"broken input ({content[:12]!r}) got {answer.status_code}, not a 4xx")
        torchserve.verify(server, None, golden, expected=version)
    except Refused as error:
        raise Refused(f"{archive.name}: no infra blessing from the sandbox TorchServe: {error}") from None
    return {
        "blessing": "infra",
        "archive": digest_file(archive),
        "server": f"torchserve {installed('torchserve')}",
        "golden": found["recordings"],
        "tolerance": torchserve.TOLERANCE,
        "broken_inputs_refused": len(BROKEN),
    }


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
