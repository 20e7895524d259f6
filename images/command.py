"""Commands that a build runs, and what is said where one fails."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path


class Refusal(Exception):
    """What is wrong and what to do; ends the run."""


def say(text: str) -> float:
    """A line of progress; returns the time it was said, in seconds of the monotonic clock."""
    print(text, file=sys.stderr, flush=True)
    return time.monotonic()


def quiet(command: list[str], env: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    """Run a command for its output."""
    return subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", check=False)


def logged(what: str, command: list[str], log: Path, env: Mapping[str, str] = os.environ) -> None:
    """Run a command with all it says in `log`; raises `Refusal` with the log's end where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        done = subprocess.run(command, env=env, stdout=stream, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise Refusal(told(f"{what}: failed; all that was said is in {log}", log.read_text(errors="replace")))


def docker(*words: str) -> str:
    """What docker answers; raises `Refusal` where it does not."""
    done = quiet(["docker", *words])
    if done.returncode:
        raise Refusal(told(f"docker {words[0]}", done.stderr))
    return done.stdout.strip()


def identity(tag: str) -> str:
    """The id of an image, or nothing where there is no such image."""
    done = quiet(["docker", "image", "inspect", "-f", "{{.Id}}", tag])
    return done.stdout.strip() if done.returncode == 0 else ""


def need_engine() -> None:
    """Raises `Refusal` where no Docker engine can be talked to."""
    if not shutil.which("docker"):
        raise Refusal("docker: no such command; install Docker's command line (Debian: `apt-get install docker.io`)")
    trial = quiet(["docker", "version", "-f", "{{.Server.Version}}"])
    if trial.returncode == 0:
        return
    if "permission denied" in trial.stderr.lower():
        raise Refusal("docker: this user may not use the engine's socket; run as root or join the group `docker`")
    address = os.environ.get("DOCKER_HOST", "its usual socket")
    raise Refusal(told(f"docker: no engine answers at {address}; start one or set DOCKER_HOST", trial.stderr))


def told(what: str, output: str) -> str:
    """A message with the end of what a command said, and what to do about a full disk."""
    end = "\n".join(output.strip().splitlines()[-15:])
    if "no space left on device" in output.lower():
        what += "\nthe disk is full: `docker system df` shows what images hold, `docker image prune` frees the unnamed"
    return f"{what}\n{end}"
