"""The embedded stack: Airflow (standalone, SQLite) to NATS and the app, all on this machine, under honcho.

`python -m local.stack up|down|status`. Everything it keeps lies under `var/`: data, logs, and `stack.json`, which
tells whoever asks where the services are. Ports come from the environment (`AIRFLOW_PORT`, ...); where a default is
taken by somebody else, a free one is found.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests
from rich.console import Console
from rich.live import Live
from rich.table import Table

from local.airflow_api import Airflow
from local.compose import make_secrets
from local.ports import PortTaken, choose_ports
from local.services import (
    MODEL,
    ROOT,
    SECRETS,
    SERVICES,
    alone,
    command,
    demo_key,
    describe,
    first_password,
    var,
)
from spira_train.signing import make_keys

START_SECONDS, STOP_SECONDS = 180.0, 20.0
console = Console(highlight=False)


def main(arguments: Sequence[str]) -> None:
    """up [SERVICE...] | down | status"""
    match list(arguments):
        case ["up", *names] if set(names) <= set(SERVICES):
            _say(addresses(up(tuple(names) or SERVICES)))
        case ["down"]:
            down()
        case ["status"]:
            status()
        case ["supervise", described]:
            raise SystemExit(supervise(json.loads(described)))
        case _:
            raise SystemExit(f"usage: python -m local.stack up [{' '.join(SERVICES)}] | down | status")


def state() -> dict[str, Any] | None:
    """The stack as `stack.json` has it, if its supervisor lives; else None."""
    try:
        stack = json.loads((var() / "stack.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return dict(stack) if stack["supervisor"] in members() else None


def up(services: Sequence[str] = SERVICES) -> dict[str, Any]:
    """Start the stack, wait until it is healthy, return its state; a stack that runs already is left as it is.

    Raises `SystemExit` with one message where that fails; then nothing is left running.
    """
    with alone("stack"):
        if running := state():
            console.print(f"already up: {', '.join(running['services'])}")
            return running
        _reap()
        try:
            stack = describe(choose_ports(os.environ), tuple(services))
        except PortTaken as taken:
            raise SystemExit(str(taken)) from None
        for folder in ("log", "airflow", "mlflow", "lake", "runs", "models", "live"):
            (var() / folder).mkdir(parents=True, exist_ok=True)
        (var() / "inferences").mkdir(exist_ok=True, mode=0o700)  # recordings that the model was asked about
        make_keys(Path(stack["places"]["SPIRA_SIGNING_KEY"]).parent)  # what archives are signed and verified with
        make_secrets(var() / "secrets", *SECRETS)
        supervisor = _start_supervisor(stack)
        stack["supervisor"] = supervisor.pid
        (var() / "stack.json").write_text(json.dumps(stack, indent=1))
        try:
            _wait_until_healthy(stack, supervisor)
            if "airflow" in services and os.environ.get("SPIRA_GPUS", "none") != "none":
                login(stack).pool("gpu", 1, "One training at a time on the GPU")
        except BaseException:
            _stop()
            raise
        return stack


def down() -> None:
    """Stop the stack and leave no process; its data stays."""
    with alone("stack"), console.status("stopping the stack"):
        found = _stop()
    console.print("stopped" if found else "nothing was running")


def status() -> None:
    """Say what runs and where, and which model it serves, since when and why."""
    stack = state()
    if not stack:
        console.print("not running; `make up` starts it")
        return
    healthy = {name: 0.0 for name in stack["services"] if _healthy(name, stack["health"][name])}
    console.print(_table(stack, healthy, None))
    _say(addresses(stack))
    if {"mlflow", "torchserve"} <= set(stack["services"]):
        console.print()
        names = {"mlflow": "MLFLOW_TRACKING_URI"} | {
            n: f"SPIRA_{n.upper()}" for n in ("inference", "management", "keys", "live")
        }
        flags = [word for name, place in names.items() for word in (f"--{name}", stack["places"][place])]
        subprocess.run([MODEL / "spira-train", "status", *flags], check=False)


def supervise(stack: Mapping[str, Any]) -> int:
    """Run the services under honcho until one of them ends or a signal comes; returns the exit code."""
    from honcho.manager import Manager
    from honcho.printer import Printer

    manager = Manager(Printer(sys.stdout, time_format="%H:%M:%S", colour=False))
    for name in stack["services"]:
        words, env = command(name, stack)
        line = f"exec {shlex.join(words)} > {shlex.quote(str(_log(name)))} 2>&1"
        manager.add_process(name, line, env=os.environ | env, cwd=str(ROOT))
    manager.loop()
    return int(manager.returncode or 0)


def login(stack: Mapping[str, Any]) -> Airflow:
    """The API of a running stack's Airflow, logged in."""
    return Airflow.login(stack["airflow"], *credentials())


def credentials() -> tuple[str, str]:
    """User and password that Airflow generated at its first start."""
    users = json.loads((var() / "airflow/simple_auth_manager_passwords.json.generated").read_text())
    return "admin", str(users["admin"])


def addresses(stack: Mapping[str, Any]) -> list[str]:
    """Where the services are and how to log in, a line each."""
    user, password = credentials() if "airflow" in stack["services"] else ("", "")
    places = stack["places"]
    lines = {
        "airflow": f"[bold]Airflow[/]    {stack['airflow']}  user {user}, password {password}",
        "mlflow": f"[bold]MLflow[/]     {places['MLFLOW_TRACKING_URI']}",
        "torchserve": f"[bold]TorchServe[/] {places['SPIRA_INFERENCE']}  tokens in {places['SPIRA_KEYS']}",
        "gateway": f"[bold]Gateway[/]    {stack.get('gateway')}/docs  key of the client demo in {demo_key()}",
        "app": f"[bold]App[/]        {stack.get('app')}  user demo, password in {first_password()}",
    }
    return [lines[name] for name in stack["services"] if name in lines]


def members() -> dict[int, str]:
    """Living processes of this stack (pid -> name): each carries `SPIRA_STACK` in its environment."""
    mark = f"SPIRA_STACK={var()}".encode()
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone, or not ours to read
            if mark in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) != os.getpid():
                found[int(entry.name)] = (entry / "comm").read_text().strip()
    return found


def _start_supervisor(stack: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    with _log("stack").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "local.stack", "supervise", json.dumps(stack)],
            cwd=ROOT,
            env=os.environ | {"SPIRA_STACK": str(var()), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in this terminal is not its business
        )


def _wait_until_healthy(stack: Mapping[str, Any], supervisor: subprocess.Popen[bytes]) -> None:
    since = time.monotonic()
    healthy: dict[str, float] = {}
    with Live(console=console, refresh_per_second=4) as live:
        while len(healthy) < len(stack["services"]):
            for name in stack["services"]:
                if name not in healthy and _healthy(name, stack["health"][name]):
                    healthy[name] = time.monotonic() - since
            elapsed = time.monotonic() - since
            live.update(_table(stack, healthy, elapsed))
            if supervisor.poll() is not None or elapsed > START_SECONDS:
                raise SystemExit(_failure(stack, healthy))
            time.sleep(0.2)
    if not console.is_terminal:
        console.print()  # Live leaves the line open


def _healthy(name: str, url: str) -> bool:
    try:
        answer = requests.get(url, timeout=2)
        if name == "airflow":
            return all(answer.json()[part]["status"] == "healthy" for part in ("scheduler", "dag_processor"))
        # TorchServe's ping wants a token; whoever brings none is told 400, by a server that is there.
        return answer.ok or (name == "torchserve" and answer.status_code == 400)
    except (requests.RequestException, ValueError, KeyError):
        return False


def _table(stack: Mapping[str, Any], healthy: Mapping[str, float], elapsed: float | None) -> Table:
    table = Table("service", "state", "address", box=None, header_style="dim", padding=(0, 3, 0, 0))
    for name in stack["services"]:
        if elapsed is None:
            mark = "[green]healthy[/]" if name in healthy else "[red]no answer[/]"
        else:
            mark = f"[green]healthy[/] after {healthy[name]:.0f} s" if name in healthy else f"starting {elapsed:.0f} s"
        table.add_row(name, mark, stack["health"][name].split("/", 3)[2])
    return table


def _failure(stack: Mapping[str, Any], healthy: Mapping[str, float]) -> str:
    """Which service failed, and the end of its log."""
    story = _log("stack").read_text(errors="replace").splitlines()
    ended = [name for line in story for name in stack["services"] if f"{name} stopped (rc=" in line]
    name = next(iter(ended), None) or next((n for n in stack["services"] if n not in healthy), "stack")
    why = "ended" if ended else f"was not healthy after {START_SECONDS:.0f} s"
    tail = _log(name).read_text(errors="replace").splitlines()[-15:] if _log(name).exists() else []
    return f"{name} {why}; the stack was stopped. The end of {_log(name)}:\n" + "\n".join(f"  {x}" for x in tail)


def _stop() -> bool:
    """Ask the supervisor, wait, then kill what is left; whether there was anything to stop."""
    found = members()
    stack = state()
    if stack:
        with suppress(ProcessLookupError):
            os.kill(stack["supervisor"], signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while stack and members() and time.monotonic() < deadline:
        time.sleep(0.2)
    _reap()
    (var() / "stack.json").unlink(missing_ok=True)
    return bool(found)


def _reap() -> None:
    """Kill every living process of this stack."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in members():
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + 3
        while members() and time.monotonic() < deadline:
            time.sleep(0.1)


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True)


def _log(name: str) -> Path:
    return var() / "log" / f"{name}.log"


if __name__ == "__main__":
    main(sys.argv[1:])
