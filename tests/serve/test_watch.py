"""What people send, held against what the champion was trained on; the registry is a real MLflow."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from registering import Made, Place, go
from runs import found_by_validate, make_run, pack
from servers import Running

from serve import torchserve as ts
from spira_train import drift, watch
from spira_train.outcome import NothingToDo, Refused
from spira_train.registry import Registry

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]
NOW = datetime(2026, 11, 25, 6, tzinfo=UTC)
USUAL = {"seconds": (8.0, 1.0), "rms_dbfs": (-25.0, 4.0), "snr_db": (20.0, 5.0), "bandwidth_hz": (7900.0, 30.0)}


def recordings(count: int, seed: int, **other: tuple[float, float]) -> list[dict[str, float]]:
    rng = np.random.default_rng(seed)
    return [{name: float(rng.normal(*spread)) for name, spread in (USUAL | other).items()} for _ in range(count)]


@pytest.fixture(scope="module")
def champion(torchserve: Running, mlflow: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A run whose archive carries statistics, registered."""
    run, config = make_run(tmp_path_factory.mktemp("champion"), 7)
    scores = [{"score": score} for score in np.random.default_rng(1).uniform(0.1, 0.6, 300)]
    found = {"data": drift.statistics(recordings(300, 0)), "scores": drift.statistics(scores)}
    found_by_validate(run, "statistics.json", found)
    pack(run, config)
    made = run, config, json.loads((run / "package" / "package.json").read_text())
    go(made, (torchserve.server, torchserve.store, mlflow))
    yield made
    Registry(mlflow).client.delete_registered_model("spira")
    ts.unregister(torchserve.server, made[2]["version"])


def audit(file: Path, version: str, heard: list[dict[str, float]], *, score: float = 0.35, days: float = 1) -> Path:
    """A gateway's audit of these recordings, some days ago."""
    rng, at = np.random.default_rng(3), NOW - timedelta(days=days)
    lines = [
        {
            "time": at.isoformat(), "request_id": f"r{number}", "client": "ward-7", "status": 200, "version": version,
            "probability": 0.4, "calibrated": float(np.clip(score + rng.uniform(-0.25, 0.25), 0, 1)),
            "diagnosis": "negative", "warnings": ["short"] if number % 10 == 0 else [], "heard": one,
        }
        for number, one in enumerate(heard)
    ]  # fmt: skip
    with file.open("a") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)
    return file


def look(place: Place, file: Path, **options) -> dict:
    return watch.run(audit=file, models=place[1], mlflow=place[2], days=7, now=NOW, **options)


@pytest.fixture
def there(torchserve: Running, mlflow: str, champion: Made) -> Place:
    return torchserve.server, torchserve.store, mlflow


def test_recordings_like_the_training_data_are_no_drift(there: Place, champion: Made, tmp_path: Path) -> None:
    version = champion[2]["version"]
    file = audit(tmp_path / "audit.jsonl", version, recordings(200, 1))
    with file.open("a") as stream:
        stream.write('{"time": "2026-11-25T05:59')  # the gateway is at work
    found = look(there, file, out=tmp_path / "watch")
    assert (found["version"], found["answers"], found["drift"]) == (version, 200, [])
    assert found["warnings"] == {"short": 20}
    compared = {finding["name"] for finding in found["findings"]}
    assert compared == {"seconds", "rms_dbfs", "snr_db", "bandwidth_hz", "score"}
    assert json.loads((tmp_path / "watch" / "2026-11-25.json").read_text()) == found


def test_telephones_are_drift_and_so_are_other_scores(there: Place, champion: Made, tmp_path: Path) -> None:
    heard = recordings(200, 1, bandwidth_hz=(3400.0, 20.0))
    found = look(there, audit(tmp_path / "audit.jsonl", champion[2]["version"], heard, score=0.7))
    assert [text.split(":")[0] for text in found["drift"]] == ["bandwidth_hz", "score"]
    assert "median 34" in found["drift"][0]


def test_what_others_answered_and_what_is_long_ago_does_not_count(there: Place, champion: Made, tmp_path: Path) -> None:
    strange = recordings(200, 1, seconds=(60.0, 1.0))
    file = audit(tmp_path / "audit.jsonl", "2026-01-01-00000000", strange)
    audit(file, champion[2]["version"], strange, days=8)
    with pytest.raises(NothingToDo, match=r"no answer of .* in the last 7 days says what was heard"):
        look(there, file)
    assert look(there, audit(file, champion[2]["version"], recordings(60, 2)))["answers"] == 60
    file.rename(tmp_path / "audit-2026-11.jsonl")  # as an operator rotates it
    assert look(there, audit(file, champion[2]["version"], recordings(5, 3)))["answers"] == 65


def test_an_archive_that_was_changed_is_not_believed(there: Place, champion: Made, tmp_path: Path) -> None:
    file = audit(tmp_path / "audit.jsonl", champion[2]["version"], recordings(30, 1))
    copy = tmp_path / "models"
    copy.mkdir()
    archive = there[1] / f"spira-{champion[2]['version']}.mar"
    (copy / archive.name).write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(Refused, match="not as it was registered"):
        look((there[0], copy, there[2]), file)
