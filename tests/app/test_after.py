"""What comes after an answer: a later diagnosis, live accuracy, retention, withdrawal; with a real collection."""

import json
import time
from collections.abc import Iterator
from datetime import timedelta

import httpx
import pytest
from inference_parts import Part, Parts, announced, ended, new_id, parts, running, until
from runs import free_ports, wav
from sqlalchemy import update

from access.database import engine, now, sessions
from collect.pseudonym import pseudonym, read_key
from serve.app.records import Inference

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def it(tmp_path_factory) -> Iterator[Parts]:
    (port,) = free_ports(1)
    settings = {
        "collect": f"http://127.0.0.1:{port}",
        "sweep_seconds": 0.3,
        "upload_hours": 0.001,
        "retention_days": 30,
    }
    with running(parts(tmp_path_factory.mktemp("after"), **settings)) as started:
        yield started


def begin(client, content: bytes, **facts) -> str:
    new = announced(content, **facts)
    assert client.post("/v1/inferences", json=new).status_code == 201
    client.patch(f"/v1/inferences/{new['id']}/audio", content=content, headers={"Upload-Offset": "0"})
    ended(client, new["id"])
    return new["id"]


def age(it: Parts, id: str, days: float, **more) -> None:
    opened = engine(it.places["SPIRA_DATABASE"])
    with sessions(opened).begin() as session:
        values = {"created_at": now() - timedelta(days=days)} | more
        session.execute(update(Inference).where(Inference.id == id).values(**values))
    opened.dispose()


def test_a_later_diagnosis_becomes_a_recording_to_train_on_and_a_withdrawal_takes_it_all_back(it):
    url = it.places["SPIRA_COLLECT"]
    env = {name: value for name, value in it.places.items() if not name.startswith("SPIRA_APP_") or "AUDIO" in name}
    env |= {"SPIRA_COLLECT_PORT": url.rpartition(":")[2]}
    del env["SPIRA_COLLECT"]
    command = [it.app.command[0], "-m", "collect", "serve"]
    collect = Part("collect", command, it.folder, f"{url}/healthz", env)
    lake, day = it.folder / "lake", now().date().isoformat()
    with it.client() as nurse:
        consent = {"subject": "RGH 77", "consent_training": True, "sex": "F", "age": 61}
        trains = begin(nurse, wav(3.0, seed=5), **consent)
        silent = begin(nurse, wav(3.0, seed=6))
        for id in (trains, silent):
            said = nurse.post(f"/v1/inferences/{id}/label", json={"label": "patient", "why": "blood gas"})
            assert (said.status_code, said.json()["label"]) == (200, "patient")
        collect.start()
        try:
            table = lake / "landing" / day / "metadata.csv"
            until(table.exists, 30)
            whose = pseudonym(read_key(it.folder / "pseudonym.key"), "RGH 77")
            _, row = table.read_text().splitlines()  # without consent nothing is trained on
            assert row.split(",")[1:5] == ["1", "F", "61", whose]
            through_the_app(it)
            (lake / "collection/withdrawn").mkdir(parents=True, exist_ok=True)
            (lake / "collection/withdrawn" / f"{whose}.json").write_text(json.dumps({"subject": whose, "days": []}))
            until(lambda: nurse.get(f"/v1/inferences/{trains}").status_code == 404)
            assert list((it.folder / "inferences").rglob(trains)) == []
            assert nurse.get(f"/v1/inferences/{silent}").status_code == 200
            refused = nurse.post("/v1/inferences", json=announced(b"x", **consent))
            assert (refused.status_code, refused.json()["error"]) == (409, "withdrawn")
        finally:
            collect.end()
    for part in (it.app, it.worker, collect):
        assert "RGH" not in part.log


def through_the_app(it: Parts) -> None:
    """The collector's page asks the app, which hands on."""
    facts = {"consent": True, "subject": "somebody else", "label": "control"}
    with it.client("gatherer") as gatherer:
        sent = gatherer.post(
            "/collect/v1/recordings",
            files={"recording": ("a.wav", wav(3.0, seed=9))},
            data={"facts": json.dumps(facts)},
        )
        assert sent.status_code == 201, sent.text
        days = gatherer.get("/collect/v1/days")
        assert (days.status_code, days.headers["content-type"]) == (200, "application/json")
    assert httpx.get(f"{it.url}/collect/v1/days").status_code == 401


def test_live_accuracy_follows_the_diagnoses(it):
    with it.client("doctor") as doctor:
        before = doctor.get("/v1/live").json().get("2026-11-05-7a7d4e72", {"n": 0, "right": 0})
        ids = [begin(doctor, f"heard {number}".encode()) for number in range(3)]
        for id, label in zip(ids, ("patient", "patient", "control"), strict=True):  # all were answered `positive`
            doctor.post(f"/v1/inferences/{id}/label", json={"label": label})
        one = doctor.get("/v1/live").json()["2026-11-05-7a7d4e72"]
        assert (one["n"] - before["n"], one["right"] - before["right"]) == (3, 2)
        doctor.post(f"/v1/inferences/{ids[0]}/label", json={"label": "control", "why": "corrected"})
        assert doctor.get("/v1/live").json()["2026-11-05-7a7d4e72"]["right"] == one["right"] - 1
        file = it.folder / "inferences/live.json"
        assert json.loads(file.read_text())["2026-11-05-7a7d4e72"]["right"] == one["right"] - 1
        assert it.series("live_labels", version="2026-11-05-7a7d4e72") == one["n"]
        telling = {"label": "patient", "why": "ask maria@example.org"}
        refused = doctor.post(f"/v1/inferences/{ids[1]}/label", json=telling)
        assert (refused.status_code, refused.json()["error"]) == (422, "personal_data")
        assert doctor.post(f"/v1/inferences/{new_id()}/label", json={"label": "patient"}).status_code == 404


def test_recordings_go_after_their_time_and_answers_stay(it):
    with it.client() as nurse:
        old, fresh, labelled = (begin(nurse, name.encode()) for name in ("old one", "fresh one", "labelled one"))
        nurse.post(f"/v1/inferences/{labelled}/label", json={"label": "control"})
        for id in (old, labelled):
            age(it, id, 31)
        until(lambda: not list((it.folder / "inferences").rglob(old)))
        time.sleep(0.7)
        assert list((it.folder / "inferences").rglob(fresh))
        assert list((it.folder / "inferences").rglob(labelled)), "the collection may still have to fetch it"
        age(it, labelled, 40, labelled_at=now() - timedelta(days=8))
        until(lambda: not list((it.folder / "inferences").rglob(labelled)))
        assert nurse.get(f"/v1/inferences/{old}").json()["answer"]["diagnosis"] == "positive"


def test_an_upload_that_never_ends_is_forgotten(it):
    with it.client() as nurse:
        new = announced(b"never whole")
        nurse.post("/v1/inferences", json=new)
        nurse.patch(f"/v1/inferences/{new['id']}/audio", content=b"never", headers={"Upload-Offset": "0"})
        until(lambda: nurse.get(f"/v1/inferences/{new['id']}").status_code == 404)
        assert not (it.folder / "home/uploads" / new["id"]).exists()
