"""What the Docker engine says, through its command line: containers of a stack and how they are, images, its socket."""

import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

SOCKET = "/var/run/docker.sock"
SERVICE, PROJECT = "com.docker.compose.service", "com.docker.compose.project"
ONCE = ("places", "airflow-init")  # services that do something and end
_STATE = (
    f'{{{{index .Config.Labels "{SERVICE}"}}}} {{{{.State.Status}}}} {{{{.State.ExitCode}}}} {{{{.RestartCount}}}} '
    "{{if .State.Health}}{{.State.Health.Status}}{{else}}-{{end}}"
)


def docker(*words: str) -> str:
    """What the command prints; raises `SystemExit` with what it says where it fails."""
    done = run("docker", *words)
    if done.returncode:
        raise SystemExit(f"docker {words[0]} failed: {done.stderr.strip()}")
    return done.stdout


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """The ended command; one that does not exist has ended with 127."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return subprocess.CompletedProcess(words, 127, "", f"{words[0]}: no such command; install it")


def states(stack: str) -> dict[str, str]:
    """Service -> how it is: waiting, starting, healthy, unhealthy, done, ended (how), restarting (how often)."""
    found = docker("ps", "-aq", "--filter", f"label={PROJECT}={stack}").split()
    # One may be gone by now: what inspect says of the others counts all the same.
    lines = run("docker", "inspect", "-f", _STATE, *found).stdout.splitlines() if found else []
    return {(words := line.split())[0]: _state(*words) for line in lines}


def _state(service: str, status: str, code: str, restarts: str, health: str) -> str:
    if status == "running":
        return "starting" if health == "-" else health
    if status == "exited":
        return "done" if service in ONCE and code == "0" else f"ended (exit code {code})"
    return {"created": "waiting", "restarting": f"restarting ({restarts} times)"}.get(status, status)


def log(stack: str, service: str) -> tuple[str, list[str]]:
    """The container of a service, and the last lines that it wrote."""
    filters = ("--filter", f"label={PROJECT}={stack}", "--filter", f"label={SERVICE}={service}")
    container = docker("ps", "-aq", *filters).split()[0]
    said = run("docker", "logs", "--tail", "15", container)
    return container, (said.stdout + said.stderr).splitlines()


def images(built: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Variable (`SPIRA_..._IMAGE`) -> id of the image: the one that the environment names, else the one built last."""
    found, missing = {}, []
    for name in names:
        variable = f"{name.upper()}_IMAGE"
        chosen = os.environ.get(variable)
        answer = run("docker", "image", "inspect", "-f", "{{.Id}}", chosen or built.get(name) or f"{name}:latest")
        found[variable] = answer.stdout.strip()
        if answer.returncode:
            missing.append(f"{variable}={chosen}" if chosen else name)
    if missing:
        raise SystemExit(f"not on this engine: {', '.join(missing)}; `make images` builds all images")
    return found


def socket(env: Mapping[str, str]) -> Path:
    """The engine's socket on this machine."""
    host = env.get("DOCKER_HOST") or f"unix://{SOCKET}"
    if not host.startswith("unix://"):
        raise SystemExit(f"DOCKER_HOST is {host}; the stack needs the engine's socket on this machine: unix:///...")
    path = Path(host.removeprefix("unix://"))
    if not path.exists():
        raise SystemExit(f"{path}: no such socket; start a Docker engine, or set DOCKER_HOST=unix:///...")
    return path
