"""`spira-train status`: what is served, since when, why, and what was refused, from a real MLflow and TorchServe."""

import io
import itertools
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from runs import found_by_validate, free_ports, held_against, packaged

from local import compose
from serve import torchserve as ts
from serve.torchserve import Server
from spira_train import reconcile, register, status
from spira_train.registry import CHAMPION, EXPERIMENT, Registry

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> list:
    """Two packaged runs, the first with a verdict of 24 checks."""
    folder = tmp_path_factory.mktemp("baked")
    runs = [packaged(folder, seed, f"2026-11-0{seed}") for seed in (1, 2)]
    for run, _, _ in runs:
        verdict = {"verdict": "blessed", "checks": [{"passed": True}] * 24}
        found_by_validate(run, "verdict.json", verdict)
    return runs


@pytest.fixture
def place(torchserve, mlflow: str, request: pytest.FixtureRequest):
    """(server under a name of its own, model store, MLflow with no versions and no trainings)."""
    server = replace(torchserve.server, name=request.node.name[-40:])
    yield server, torchserve.store, mlflow
    client = Registry(mlflow).client
    for model in client.search_registered_models():
        client.delete_registered_model(model.name)
    if experiment := client.get_experiment_by_name(EXPERIMENT):
        for training in client.search_runs([experiment.experiment_id]):
            client.delete_run(training.info.run_id)
    for version in sorted(ts.status(server)["versions"], key=lambda v: v == ts.status(server)["default"]):
        ts.unregister(server, version)


def go(made: tuple, place: tuple[Server, Path, str], **options) -> str:
    run, config, facts = made
    default, known = ts.status(place[0])["default"], Registry(place[2]).versions().values()
    held_against(run, default, next((v.tags["archive"] for v in known if v.tags["version"] == default), None))
    register.run(run=run, config=config, models=place[1], mlflow=place[2], server=place[0], **options)
    return facts["version"]


def look(server: Server, mlflow: str, **options) -> str:
    """What a wide terminal shows, without its line ends."""
    out = io.StringIO()
    status.show(status.gather(mlflow=mlflow, server=server), Console(file=out, width=300, highlight=False), **options)
    return re.sub(r" +", " ", out.getvalue())


def refuse(mlflow: str, partition: str, reasons: str) -> None:
    """A training as validate leaves it in MLflow where the gate says no."""
    client = Registry(mlflow).client
    experiment = client.get_experiment_by_name(EXPERIMENT)
    identity = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    tags = {"partition": partition, "verdict": "refused", "reasons": reasons}
    client.set_terminated(client.create_run(identity, tags=tags).info.run_id)
    time.sleep(0.01)  # MLflow's clock ticks in milliseconds, and the order is tested


def test_nothing_is_served_yet(place) -> None:
    said = look(place[0], place[2])
    assert "served nothing \n" in said
    assert "nothing is served yet" in said
    assert "refused nothing so far" in said


def test_what_is_served_since_when_and_why(place, baked) -> None:
    first = go(baked[0], place)
    second = go(baked[1], place, approver="Ana [bold]Lima", approved_at="2026-11-06T08:30:00+00:00")
    facts = status.gather(mlflow=place[2], server=place[0])
    assert facts["served"] == second
    assert status.agreement(facts) == (True, "MLflow and TorchServe agree")
    said = look(place[0], place[2], now=datetime.now(UTC) + timedelta(hours=50))
    assert f"served {second}, in its own words at {place[0].inference}" in said
    assert f"champion {second}, version 2 of MLflow's spira" in said
    assert f"previous {first}, version 1" in said
    assert "✓ MLflow and TorchServe agree" in said
    assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d UTC, 2 days ago", said)
    assert "clean AUC 0.900 (0.800 to 0.950)" in said
    assert "24 of 24 checks of the gate kept" in said
    assert "approved by Ana [bold]Lima, 2026-11-06 08:30 UTC" in said  # names are no markup


def test_who_approved_nothing_is_not_named(place, baked) -> None:
    go(baked[0], place)
    assert "approved by the gate alone: no human was asked" in look(place[0], place[2])


def test_a_disagreement_is_said_and_what_heals_it(place, baked) -> None:
    first, second = (go(each, place) for each in baked)
    registry = Registry(place[2])
    registry.point(CHAMPION, "1")
    said = look(place[0], place[2])
    assert f"✗ TorchServe serves {second}, but MLflow's champion is {first}" in said
    assert "The DAG `spira_upkeep` mends it within five minutes, `spira-train reconcile` at once" in said
    registry.client.delete_registered_model("spira")
    assert f"✗ TorchServe serves {second}, which MLflow does not know; its champion is nobody" in look(
        place[0], place[2]
    )


def test_a_champion_that_nobody_serves(place, baked) -> None:
    first = go(baked[0], place)
    ts.unregister(place[0], first)
    said = look(place[0], place[2])
    assert f"✗ MLflow's champion is {first}, but TorchServe serves nothing" in said
    assert "`spira-train reconcile` at once" in said
    reconcile.run(mlflow=place[2], server=place[0], models=place[1])
    assert "✓" in look(place[0], place[2])


def test_the_newest_refusals_come_first(place) -> None:
    for day in range(1, 8):
        refuse(place[2], f"2026-11-0{day}", "clean auc is low; ward noise auc is low; too few; too loud")
    refuse(place[2], "2026-11-09", "")
    said = look(place[0], place[2])
    assert re.findall(r"^ ?(2026-11-\d\d) \d{4}-", said, re.M) == [f"2026-11-0{day}" for day in (9, 7, 6, 5, 4)]
    assert "its reasons are not on record" in said
    assert said.count("clean auc is low") == 4
    assert said.count("and 2 more") == 4


def test_whoever_is_away_is_said_in_one_line_each(place, baked) -> None:
    (port,) = free_ports(1)
    away = f"http://127.0.0.1:{port}"
    first = go(baked[0], place)
    gone = replace(place[0], inference=away, management=away)
    said = look(gone, place[2])
    assert f"away TorchServe at {away} does not answer; start it and run again" in said
    assert f"champion {first}" in said
    assert f"away MLflow at {away} does not answer" in look(place[0], away)
    said = look(gone, away)
    assert said.count("does not answer") == 2
    assert "cannot be said while one is away" in said


def test_a_token_that_is_missing_or_wrong_is_said(place, tmp_path: Path) -> None:
    assert "asks for a token; pass its key_file.json with --keys" in look(replace(place[0], keys=None), place[2])
    wrong = tmp_path / "key_file.json"
    wrong.write_text(json.dumps({name: {"key": "wrong"} for name in ("management", "inference", "API")}))
    assert f"does not take the key in {wrong}" in look(replace(place[0], keys=wrong), place[2])
    (port,) = free_ports(1)  # as seen from outside the stack in containers
    closed = replace(place[0], keys=wrong, management=f"http://127.0.0.1:{port}")
    assert "the token is too old, and TorchServe's management API" in look(closed, place[2])


@pytest.mark.parametrize("away", [False, True])
def test_the_command_ends_well(place, away: bool) -> None:
    command = [Path(sys.executable).with_name("spira-train"), "status", "--keys", place[0].keys]
    mlflow = f"http://127.0.0.1:{free_ports(1)[0]}" if away else place[2]
    flags = ["--mlflow", mlflow, "--inference", place[0].inference, "--management", place[0].management]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "served" in done.stdout
    assert ("away" in done.stdout) == away
    assert "Traceback" not in done.stderr


def test_in_containers_it_asks_at_the_addresses_that_steps_are_told() -> None:
    words = compose.asking({"SPIRA_STACK_NAME": "spira", "SPIRA_TRAIN_IMAGE": "sha256:0"})
    told = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["x-step-settings"]
    flags = dict(itertools.pairwise(words))
    assert flags["--mlflow"] == told["MLFLOW_TRACKING_URI"]
    assert flags["--inference"] == told["SPIRA_INFERENCE"]
    assert flags["--management"] == told["SPIRA_MANAGEMENT"]
    assert flags["--network"] == "spira-steps"
