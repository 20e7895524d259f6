"""A later diagnosis from the app, over a real NATS: the inference becomes a recording to train on."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from collecting import agrees, service, sound
from runs import free_ports

from collect import labels, ledger
from collect.facts import Wrong
from collect.ledger import Declined
from collect.pseudonym import pseudonym, read_key
from collect.receive import withdraw
from collect.settings import Settings
from serve.app import streams
from spira_train.store import Lake, digest_bytes

DAY = "2026-11-01"
BROKER = Path(sys.executable).parent / "nats-server"


def message(number: int, **more) -> bytes:
    facts = {"subject": "0123456789abcdef", "age": 50, "consent_training": True, "language": "pt"}
    entered = {"inference_id": f"{number:032x}", "label": "patient", "why": "X-ray", "who": "dr-1", "day": DAY}
    return json.dumps(entered | {"audio": f"{DAY}/{number:032x}", "facts": facts} | more).encode()


@pytest.fixture
def settings(tmp_path) -> Settings:
    audio = tmp_path / "lake" / "inferences" / DAY
    audio.mkdir(parents=True)
    for number in range(3):
        (audio / f"{number:032x}").write_bytes(sound(number))
    return Settings(lake=str(tmp_path / "lake"), audio=str(audio.parent), pseudonym_key=tmp_path / "pseudonym.key",
                    trail=tmp_path / "trail")  # fmt: skip


def test_a_diagnosis_makes_a_recording_of_the_day_of_the_inference(settings):
    lake = Lake(settings.lake)
    first = labels.take(settings, message(0))
    assert (first.day, first.state) == (DAY, "landed")
    assert labels.take(settings, message(0)).again
    corrected = labels.take(settings, message(0, label="control", why="PCR"))
    found = ledger.find(lake, corrected.id)
    assert (found.label, len(found.labels), found.subject) == ("control", 2, "0123456789abcdef")
    agrees(lake)


def test_words_that_name_somebody_are_left_out_and_the_label_is_kept(settings):
    kept = labels.take(settings, message(0, why="ask ana@hospital.org"))
    (given,) = ledger.find(Lake(settings.lake), kept.id).labels
    assert (given["label"], given["why"]) == ("patient", "")


def test_what_is_refused(settings):
    key = read_key(settings.pseudonym_key)
    (Path(settings.lake) / "secret.wav").write_bytes(sound(9))
    for more, error in (
        ({"facts": {"subject": "0123456789abcdef"}}, Wrong),
        ({"facts": {"consent_training": True}}, Wrong),  # nobody could withdraw it
        ({"audio": "../secret.wav"}, ValueError),
        ({"audio": "/etc/passwd"}, ValueError),
        ({"audio": "gone"}, FileNotFoundError),
        ({"label": "ill"}, ValueError),
        ({"day": "2999-01-01"}, ValueError),
        ({"facts": {"subject": "Maria", "consent_training": True}}, Declined),
    ):
        with pytest.raises(error):
            labels.take(settings, message(0, **more))
    assert ledger.days(Lake(settings.lake)) == []
    withdraw(Lake(settings.lake), key, "ana", "x")
    with pytest.raises(Declined):
        facts = {"subject": pseudonym(key, "ana"), "consent_training": True}
        labels.take(settings, message(0, facts=facts))


@pytest.fixture
def broker(tmp_path):
    """The address of a real NATS."""
    (port,) = free_ports(1)
    command = [BROKER, "-js", "-sd", str(tmp_path / "js"), "-a", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    yield f"nats://127.0.0.1:{port}"
    process.terminate()
    process.wait(30)


def test_a_correction_is_not_overtaken_by_what_it_corrects(settings, broker, monkeypatch):
    """The first label has to wait (a full disk, say) while the second one is there already."""
    asyncio.run(publish(broker, [message(0), message(0, label="control")]))
    real, taken = labels.take, []

    def full(own, content):
        taken.append(json.loads(content)["label"])
        if len(taken) == 1:
            raise OSError("the disk is full")
        return real(own, content)

    monkeypatch.setattr(labels, "take", full)
    monkeypatch.setattr(labels, "AGAIN_SECONDS", 0.5)

    async def follow() -> None:
        task = asyncio.create_task(labels.follow(settings.model_copy(update={"nats": broker})))
        while len(taken) < 3 or await left(broker):
            await asyncio.sleep(0.1)
        task.cancel()

    asyncio.run(asyncio.wait_for(follow(), 60))
    assert taken == ["patient", "patient", "control"]
    (one,) = ledger.recordings(Lake(settings.lake), DAY).values()
    assert one.label == "control"


@pytest.mark.slow
def test_messages_are_taken_once_though_the_service_is_killed(tmp_path, settings, broker):
    running = service(tmp_path, SPIRA_NATS=broker, SPIRA_APP_AUDIO=settings.audio)
    asyncio.run(publish(broker, [message(0), b"not JSON", message(1), message(0)]))
    until(lambda: landed(running.lake) == {0, 1})
    running.kill()
    asyncio.run(publish(broker, [message(2), message(1), message(2, label="control")]))
    running.start()
    until(lambda: landed(running.lake) == {0, 1, 2})
    until(lambda: asyncio.run(left(broker)) == 0)
    lake = running.lake
    assert [len(one.labels) for one in ledger.recordings(lake, DAY).values()] == [1, 1, 2]
    assert [one.label for one in ledger.recordings(lake, DAY).values()] == ["patient", "patient", "control"]
    agrees(lake)
    until(lambda: asyncio.run(kept(broker)) == 0)  # what was taken is not kept: it tells of a patient
    trail = (tmp_path / "trail/trail.jsonl").read_text()
    assert trail.count('"label_refused"') == 1
    assert "not JSON" not in trail + running.log()
    assert running.stop() == 0


async def publish(url: str, messages: list[bytes]) -> None:
    async with streams.linked(url, None, "test") as (link, _):
        for content in messages:
            await link.publish(streams.ENTERED, content)


async def left(url: str) -> int:
    async with streams.linked(url, None, "test") as (link, _):
        known = await link.consumer_info(streams.LABELS, labels.DURABLE)
        return known.num_pending + known.num_ack_pending


async def kept(url: str) -> int:
    """Messages that NATS still has."""
    async with streams.linked(url, None, "test") as (link, _):
        return (await link.stream_info(streams.LABELS)).state.messages


def landed(lake: Lake) -> set[int]:
    files = set(lake.files("landing", DAY)) if lake.exists("landing", DAY) else set()
    return {number for number in range(3) if f"{digest_bytes(sound(number))}.wav" in files}


def until(held, patience: float = 60.0) -> None:
    since = time.monotonic()
    while not held():
        assert time.monotonic() - since < patience, "waited in vain"
        time.sleep(0.1)
