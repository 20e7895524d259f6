"""`make demo`: recordings in, a model that has earned it out, and its answers: all of it, through the real scheduler.

Simulates a lake while the stack starts, backfills its days with the fast preset, follows the runs, and shows what
came of it. `SPIRA_RUNTIME` says what the stack is made of: `docker` (containers) or `process`. Uses a stack that is
up already and leaves it running; else it starts one and stops it at the end.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import requests
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from local import compose, volumes
from local.airflow_api import DAG_ID, FINISHED, Airflow
from local.front_door import Door
from local.ports import DEFAULTS, IN_CONTAINERS, PortTaken, choose_ports
from local.services import MODEL, SERVICES, first_password, var
from local.stack import addresses, console, down, login, state, up
from serve import torchserve
from spira_train.outcome import StepError
from spira_train.store import Lake

DAYS, SUBJECTS = 5, 64
VOICES: tuple[str, ...] = ()  # other knobs of the simulator
PRESET = {"preset": "fast"}
STEPS = ("extract", "features", "train", "validate", "package", "register", "verify")
# What the gate asked that fits on a screen; the report has the rest.
PROBES = {
    "clean": "as recorded",
    "ward_noise": "ward noise",
    "ward_noise_controls": "… controls only",
    "ward_noise_patients": "… patients only",
    "telephone": "telephone",
    "baseline_age_sex": "age and sex alone",
}
LOOK_SECONDS, PATIENCE_SECONDS = 0.7, 1200.0
MARKS = {
    "success": "[green]●[/]",
    "running": "[yellow]◐[/]",
    "queued": "[dim yellow]○[/]",
    "scheduled": "[dim yellow]○[/]",
    "up_for_retry": "[yellow]↻[/]",
    "skipped": "[dim]-[/]",
    "failed": "[red]✗[/]",
    "upstream_failed": "[dim red]·[/]",
}


class Stage(NamedTuple):
    """What the demonstration needs of a stack, whichever way it runs."""

    lake: Path  # the simulated lake, on this machine
    login: Callable[[], Airflow]
    server: Callable[[], torchserve.Server]
    fetch: Callable[[str, str], Path]  # (`lake` or `runs`, path in there) -> where it can be read on this machine
    door: Callable[[], Door]
    addresses: Callable[[], list[str]]


def main() -> None:
    """The whole demonstration; ends with exit code 0 only if a model is served and answers."""
    started = time.monotonic()
    runtime = os.environ.get("SPIRA_RUNTIME", "process")
    console.print(Panel("SPIRA continuous training: from recordings to a served model", style="bold"))
    with {"process": _processes, "docker": _containers}[runtime]() as stage:
        days = simulated_days(Lake(str(stage.lake)))
        console.print(f"[bold]lake[/] {len(days)} days, {days[0]} to {days[-1]}, simulated voices", soft_wrap=True)
        runs = _backfill(stage.login(), days)
        newest = runs[max(runs)]
        airflow = stage.login()
        run = Path("nowhere")
        if newest["tasks"].get("setup") == "success":
            run = stage.fetch("runs", Path(airflow.result(newest["dag_run_id"], "setup")["run"]).name)
        if (run / "validate/metrics.json").exists():
            _show_metrics(run)
        _demand(newest["state"] == "success", why(airflow, newest))
        _show_serving(stage, run)
        _show_front_door(stage, run)
        console.print(f"\n[bold]report[/] {run / 'validate/report.html'}", soft_wrap=True)
        for line in stage.addresses():
            console.print(line, soft_wrap=True)
    console.print(f"\n[bold green]done[/] in {time.monotonic() - started:.0f} s")


@contextmanager
def _processes() -> Iterator[Stage]:
    """A stack of processes on this machine, beside a simulated lake; stopped at the end unless it was up before."""
    console.print("[bold]runtime[/] process: steps and services are processes of this machine")
    ours = state() is None
    lake = (state() or {"places": {}})["places"].get("SPIRA_LAKE") or os.environ.get("SPIRA_LAKE", str(var() / "lake"))
    try:
        with _simulated(Path(lake)):
            stack = up(SERVICES)
        places = {name: Path(stack["places"][f"SPIRA_{name.upper()}"]) for name in ("lake", "runs", "keys")}
        addressed = (stack["places"]["SPIRA_INFERENCE"], stack["places"]["SPIRA_MANAGEMENT"])
        yield Stage(
            lake=Path(lake),
            login=lambda: login(stack),
            server=lambda: torchserve.Server(*addressed, places["keys"]),
            fetch=lambda place, path: places[place] / path,
            door=lambda: Door(stack["app"], "demo", first_password().read_text().strip()),
            addresses=lambda: addresses(stack),
        )
    finally:
        if ours:
            down()
        else:
            console.print("the stack was up before and stays up; `make down` stops it")


@contextmanager
def _containers() -> Iterator[Stage]:
    """The stack in containers, with a simulated lake in its volume; stopped at the end unless it was up before."""
    console.print("[bold]runtime[/] docker: steps and services are containers (SPIRA_RUNTIME=process needs no engine)")
    ours = compose.running() is None
    copies, lake = var() / "demo", var() / "simulated"  # var/lake is the other stack's, and may hold real days
    if ours:  # it is gone in a few minutes: any free ports will do
        os.environ |= {name: str(port) for name, port in choose_ports(os.environ, DEFAULTS | IN_CONTAINERS).items()}
    try:
        with _simulated(lake):
            compose.up()
        chosen = compose.running() or {}
        volumes.deliver(chosen, lake)

        def server() -> torchserve.Server:
            # Management is not published: what the demonstration cannot reach, nobody outside can.
            keys = volumes.fetch(chosen, "keys", "key_file.json", copies)
            return torchserve.Server(compose.address("torchserve", chosen), "http://unpublished", keys)

        def door() -> Door:
            authority = volumes.fetch(chosen, "tls", "tls.crt", copies)
            return Door(compose.address("proxy", chosen), "demo", first_password().read_text().strip(), authority)

        yield Stage(
            lake=lake,
            login=lambda: Airflow.login(compose.address("airflow-apiserver", chosen), *compose.credentials(chosen)),
            server=server,
            fetch=lambda place, path: volumes.fetch(chosen, place, path, copies / place),
            door=door,
            addresses=lambda: compose.addresses(chosen),
        )
    finally:
        if ours:
            compose.down()
        else:
            console.print("the stack was up before and stays up; `make compose-down` stops it")


@contextmanager
def _simulated(lake: Path) -> Iterator[None]:
    """Simulate the lake while the block is at work."""
    words = [MODEL / "spira-train", "simulate", "--lake", lake, "--days", str(DAYS), "--subjects", str(SUBJECTS)]
    simulator = subprocess.Popen([*words, *VOICES], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield
        with console.status("simulating the lake"):
            last = (simulator.communicate()[0].strip().splitlines() or ["{}"])[-1]
        _demand(simulator.returncode == 0, f"simulate: {json.loads(last).get('message') or 'failed'}")
    finally:
        simulator.kill()


def simulated_days(lake: Lake) -> list[str]:
    """The days to run: none that people collected. Raises `SystemExit` where one of those is newer, and would train."""
    landed = lake.landed()
    days = [day for day in landed if not lake.exists("collection", day)]
    _demand(
        days and days[-1] == landed[-1],
        f"lake {lake.uri}: {landed[-1]} was collected, and the newest day trains for all; run the demonstration on a "
        "lake of its own: SPIRA_LAKE=$PWD/var/simulated make demo",
    )
    return days


def _backfill(airflow: Airflow, days: list[str]) -> dict[str, dict[str, Any]]:
    """Run all days through the scheduler and follow them; partition -> finished run."""
    with console.status("waiting for Airflow to know the DAG"):
        since = time.monotonic()
        while not airflow.knows():
            _demand(not airflow.import_errors(), "\n".join(airflow.import_errors()))
            _demand(time.monotonic() - since < 120, f"Airflow does not know {DAG_ID} after 120 s; see the log")
            time.sleep(0.5)
    airflow.cancel_backfills()  # of a demonstration that was interrupted
    airflow.pause(False)
    backfill = airflow.backfill(days[0], days[-1], PRESET, again=True)
    since = time.monotonic()
    runs: dict[str, dict[str, Any]] = {}
    with Live(console=console, refresh_per_second=4) as live:
        while True:
            _look(airflow, backfill, runs)
            elapsed = time.monotonic() - since
            live.update(_grid(days, runs, elapsed))
            ended = airflow.call("GET", f"backfills/{backfill}")["completed_at"]
            if ended and all(day in runs and runs[day]["state"] in FINISHED for day in days):
                break
            _demand(elapsed < PATIENCE_SECONDS, "the backfill did not end in time; see Airflow's UI")
            time.sleep(LOOK_SECONDS)
    if not console.is_terminal:
        console.print()
    return runs


def _look(airflow: Airflow, backfill: int, runs: dict[str, dict[str, Any]]) -> None:
    """Bring `runs` (partition -> run, with its tasks' states) up to date; a log, not a terminal, is told of changes."""
    for day, run in airflow.backfill_runs(backfill).items():
        known = runs.get(day, {"state": "", "tasks": {}})
        if known["state"] == run["state"] and run["state"] != "running":
            continue
        tasks = {name: task["state"] for name, task in airflow.tasks(run["dag_run_id"]).items()}
        if not console.is_terminal:
            for name, now in tasks.items():
                if now != known["tasks"].get(name) and now in ("success", "failed", "up_for_retry"):
                    console.print(f"{day} {name}: {now}", style="dim")
        runs[day] = run | {"tasks": tasks}


def _grid(days: list[str], runs: Mapping[str, Any], elapsed: float) -> Group:
    table = Table("partition", *STEPS, "run", box=None, header_style="dim", padding=(0, 1, 0, 0))
    for day in days:
        run = runs.get(day, {"state": "waiting", "tasks": {}})
        cells = [MARKS.get(run["tasks"].get(step) or "", "[dim]·[/]") for step in STEPS]
        said = "refused" if run["tasks"].get("refused") == "failed" else run["state"]
        colour = {"success": "green", "failed": "red", "refused": "red", "running": "yellow"}.get(said, "dim")
        table.add_row(day, *cells, f"[{colour}]{said}[/]")
    legend = "● done  ◐ running  - skipped (the newest day trains for all)  ✗ failed"
    return Group(table, Text(f"{elapsed:3.0f} s  {legend}", style="dim"))


def why(airflow: Airflow, run: Mapping[str, Any]) -> str:
    """What a failed run says."""
    failed = [t for t in airflow.tasks(run["dag_run_id"]).values() if t["state"] == "failed"]
    if not failed:
        return f"run {run['dag_run_id']} ended as {run['state']}"
    task = failed[0]
    lines = airflow.log(run["dag_run_id"], task["task_id"], max(task["try_number"], 1)).splitlines()
    reasons = [line.partition(": ")[2] for line in lines if re.match(r"\w*(Exception|Error): ", line)]
    tail = reasons[-1:] or lines[-12:]
    return f"{run['partition_key']}: task {task['task_id']} failed: " + "\n".join(tail)


def _show_metrics(run: Path) -> None:
    metrics = json.loads((run / "validate/metrics.json").read_text())
    verdict = json.loads((run / "validate/verdict.json").read_text())
    names = ("accuracy", "sensitivity", "specificity", "f1", "auc")
    table = Table("test set", *names, box=None, header_style="dim", padding=(0, 1, 0, 0))
    for probe, words in PROBES.items():
        if found := metrics.get(probe):
            cells = [f"{v['value']:.2f}\n[dim]{v['low']:.2f}-{v['high']:.2f}[/]" for v in map(found.__getitem__, names)]
            table.add_row(words, *cells)
    console.print("\n[bold]metrics[/] by recording of the frozen test set, with 95 % intervals")
    console.print(table)
    blessed = verdict["verdict"] == "blessed"
    kept = sum(check["passed"] for check in verdict["checks"])
    counted = f"{kept} of {len(verdict['checks'])} promises kept, {len(verdict['unproven'])} groups too small to judge"
    colour = "green" if blessed else "red"
    console.print(f"\n[bold]gate[/] [{colour}]{verdict['verdict']}[/]: {counted}", *verdict["reasons"], sep="\n")


def _show_serving(stage: Stage, run: Path) -> None:
    server = stage.server()
    expected = json.loads((run / "register/report.json").read_text())["summary"]["champion"]
    answers = {}
    for label, who in ((1, "the median patient"), (0, "the median control")):
        answer = torchserve.predict(server, _recording(stage, run, label))
        _demand(answer.ok, f"the inference API refused {who}'s recording: {answer.status_code} {answer.text[:200]}")
        answers[who] = answer.json()
        version = answers[who]["model"]["version"]
        _demand(version == expected, f"TorchServe serves {version}, but the champion is {expected}")
    console.print(f"[bold]served[/] {server.name} {expected}\n")
    for who, said in answers.items():
        console.print(f"[bold]{who}'s recording[/] → {said['diagnosis']}, probability {said['probability']:.3f}")


def _show_front_door(stage: Stage, run: Path) -> None:
    """One recording comes in by the front door, and the app is asked about it. It keeps its label to itself: with one
    it would land as a partition of today, and this lake's newest day would be that."""
    door, recording = stage.door(), _recording(stage, run, 1)
    facts = {"consent": True, "consent_training": True, "subject": "demo", "site": "demonstration"}
    receipt = door.collect(recording, facts)
    words = {"waiting": "waits for its label", "landed": "is trained on from now on"}
    told = "before: not taken twice"
    if receipt:
        told = f"{receipt['id'][:12]} on {receipt['day']}: {words[receipt['state']]}"
    console.print(f"\n[bold]collected[/] {told}")
    answer = door.ask(recording)
    said = f"{answer['diagnosis']}, probability {answer['probability']:.3f}, by {answer['model']['version']}"
    console.print(f"[bold]asked[/] the app at {door.url} → {said}", soft_wrap=True)


def _recording(stage: Stage, run: Path, label: int) -> bytes:
    """The test recording with the median probability of its class: neither the best nor the worst."""
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(run / "validate/predictions.parquet").to_pylist()
    ranked = sorted((row for row in rows if row["label"] == label), key=lambda row: row["clean"])
    row = ranked[len(ranked) // 2]
    return stage.fetch("lake", f"audio/{row['partition']}/{row['recording']}.flac").read_bytes()


def _demand(held: object, otherwise: str) -> None:
    if not held:
        raise SystemExit(otherwise)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop what we started then, too
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted; what the demo started is stopped") from None
    except (StepError, PortTaken, requests.RequestException) as problem:
        raise SystemExit(f"demo: {problem}") from None
