"""A human's no, on a real MLflow: who and when stay on record, the gate's verdict and the champion as they were."""

from datetime import datetime
from pathlib import Path

import pytest
from registering import Made, Place, go
from runs import packaged

from spira_train import reject
from spira_train.outcome import BadInput, Refused
from spira_train.registry import CHAMPION, Registry
from spira_train.store import local_lake, read_report
from spira_train.validate import note

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]


def judged(registry: Registry, made: Made) -> str:
    """The verdict in MLflow, as `validate` leaves it; the id of the run there."""
    run, config, _ = made
    report = dict(read_report(*local_lake(run / "validate")) or {})
    report["summary"] = {"verdict": "blessed", "reasons": [], "drift": []}
    return note(registry, run, config, report).split("/runs/")[1].split("/")[0]


@pytest.fixture
def made(tmp_path: Path) -> list[Made]:
    runs = [packaged(tmp_path, seed, f"2026-11-0{seed}") for seed in (1, 2)]
    for run, _, _ in runs:
        for name in ("report.html", "metrics.json"):
            if not (run / "validate" / name).exists():
                (run / "validate" / name).write_text("{}")
    return runs


def test_who_said_no_and_when_is_on_record_and_the_champion_stays(place: Place, made: list[Made]) -> None:
    registry = Registry(place[2])
    version = go(made[0], place)["summary"]["version"]
    identity, (run, config, _) = judged(registry, made[1]), made[1]
    said = f"rejected by Ana Lima, 2026-11-06 08:30 UTC: nothing was registered, {version} goes on serving"
    with pytest.raises(Refused, match=said):
        reject.run(run=run, config=config, registry=registry, by="Ana Lima", at="2026-11-06T09:30:00+01:00")
    tags = registry.client.get_run(identity).data.tags
    assert (tags["rejected"], tags["rejected_at"]) == ("rejected by Ana Lima", "2026-11-06T08:30:00+00:00")
    assert tags["verdict"] == "blessed"  # the gate's word is the gate's
    assert list(registry.versions()) == [registry.aliases()[CHAMPION]]
    (one,) = registry.refused(5)
    assert (one["partition"], one["reasons"]) == ("2026-11-02", ["rejected by Ana Lima"])
    assert one["at"] == datetime.fromisoformat("2026-11-06T08:30:00+00:00")


def test_nobody_answered_and_nothing_is_served(place: Place, made: list[Made]) -> None:
    registry, (run, config, _) = Registry(place[2]), made[0]
    with pytest.raises(Refused, match=r"nobody approved it in time, .* UTC: nothing was registered, nothing is served"):
        reject.run(run=run, config=config, registry=registry)
    assert registry.refused(5)[0]["reasons"] == ["nobody approved it in time"]


def test_what_cannot_be_rejected(place: Place, made: list[Made], tmp_path: Path) -> None:
    registry, (run, config, _) = Registry(place[2]), made[0]
    with pytest.raises(BadInput, match="--at is 'noon'; expected an ISO 8601 time"):
        reject.run(run=run, config=config, registry=registry, by="Ana", at="noon")
    with pytest.raises(BadInput, match="not finished; run `spira-train validate` first"):
        reject.run(run=tmp_path / "other", config=config, registry=registry)
    assert registry.refused(5) == []
