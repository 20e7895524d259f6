"""The registry shows which versions were trained on recordings that were withdrawn since."""

import io
import json

import pytest
from collecting import KEY, take
from registering import go
from rich.console import Console

from collect.landing import settle
from collect.receive import withdraw
from spira_train import collected, status
from spira_train.outcome import NothingToDo
from spira_train.registry import CHAMPION, Registry
from spira_train.store import Lake

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]
DAY = "2026-11-01"


def shown(place) -> str:
    out = io.StringIO()
    facts = status.gather(mlflow=place[2], server=place[0])
    status.show(facts, Console(file=out, width=300, highlight=False))
    return " ".join(out.getvalue().split())


def test_a_version_is_marked_and_status_says_so(made, place, tmp_path):
    lake, mlflow = Lake(str(tmp_path / "lake")), place[2]
    digests = [take(lake, seed, DAY, subject=f"s{seed % 2}").digest for seed in range(4)]
    settle(lake, DAY)
    for (run, _, _), used in ((made[0], digests), (made[1], digests[1::2])):
        (run / "train" / "recordings.json").write_text(json.dumps({f"{n:064x}": d for n, d in enumerate(used)}))
    go(made[0], place)
    go(made[1], place)
    collected.run(lake=lake, mlflow=mlflow)
    assert "withdrawn" not in shown(place)
    withdraw(lake, KEY, "s0", "x")
    found = collected.run(lake=lake, mlflow=mlflow)
    assert found["marked"] == {made[0][2]["version"]: 2}
    registry = Registry(mlflow)
    tags = {known.tags["version"]: known.tags.get("withdrawn") for known in registry.versions().values()}
    assert tags == {made[0][2]["version"]: "2", made[1][2]["version"]: None}
    assert "previous was trained on 2 recordings that were withdrawn since" in shown(place)
    with pytest.raises(NothingToDo):
        collected.run(lake=lake, mlflow=mlflow)
    withdraw(lake, KEY, "s1", "x")
    found = collected.run(lake=lake, mlflow=mlflow)
    assert found["marked"] == {made[0][2]["version"]: 4, made[1][2]["version"]: 2}
    champion = registry.aliases()[CHAMPION]
    assert registry.versions()[champion].tags["withdrawn"] == "2"
    assert "champion was trained on 2 recordings" in shown(place)


def test_the_days_are_closed_though_mlflow_is_away(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    take(lake, 0, DAY)
    take(lake, 1, DAY, subject="bea")
    settle(lake, DAY)
    withdraw(lake, KEY, "bea", "x")
    assert collected.run(lake=lake, mlflow="http://127.0.0.1:9")["days"] == [DAY]
