"""The handler in process: what it accepts, what it refuses, and that batch mates do not meet."""

import base64
import json
import sys
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import ANY
from zipfile import ZipFile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import LIMITS, archive_of, packaged, wav
from ts.context import Context, RequestProcessor
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

from serve.handler import Handler
from spira_train.audio import as_float, decode


class Loaded:
    """A handler on an unpacked archive, asked as TorchServe asks it."""

    def __init__(self, folder: Path):
        metrics = MetricsCacheYamlImpl(str(Path(__file__).resolve().parents[2] / "serve" / "metrics.yaml"))
        metrics.initialize_cache()
        self.context = Context("spira", str(folder), {}, 8, None, "0.12.0", metrics=metrics)
        self.handler = Handler()
        path = list(sys.path)
        self.handler.initialize(self.context)
        sys.path[:] = path

    def ask(self, *requests: dict[str, Any], headers: dict[str, str] | None = None) -> list[tuple[int, dict[str, Any]]]:
        self.context.request_processor = [RequestProcessor(dict(headers or {})) for _ in requests]
        self.context.request_ids = {index: f"request-{index}" for index in range(len(requests))}
        answers = self.handler.handle(list(requests), self.context)
        assert len(answers) == len(requests)
        return [(self.context.get_response_status(i)[0], json.loads(a)) for i, a in enumerate(answers)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("handler")
    run, _, _ = packaged(folder)
    with ZipFile(archive_of(run)) as archive:
        archive.extractall(folder / "unpacked")
    return Loaded(folder / "unpacked")


def test_one_recording_in_every_form_gets_one_answer(loaded: Loaded) -> None:
    content = wav(3)
    text = base64.b64encode(content).decode()
    forms = [{"body": content}, {"data": content}, {"audio": content}, {"body": json.dumps({"audio": text}).encode()}]
    forms += [{"body": {"audio": text}}, {"file": bytearray(content)}]
    answers = loaded.ask(*forms)
    assert {status for status, _ in answers} == {200}
    assert len({round(body["probability"], 6) for _, body in answers}) == 1
    facts = {"probability", "calibrated", "diagnosis", "warnings", "heard", "decision"}
    assert set(answers[0][1]) == facts | {"request_id", "model"}
    assert set(answers[0][1]["decision"]) == {"threshold", "band"}
    heard = answers[0][1]["heard"]
    assert (heard["seconds"], heard["bandwidth_hz"]) == (3.0, 8000.0)
    assert (heard["rms_dbfs"], heard["snr_db"]) == (pytest.approx(-22.3, abs=1), ANY)
    assert [body["request_id"] for _, body in answers] == [f"request-{index}" for index in range(len(forms))]
    assert set(answers[0][1]["model"]) == {"name", "version", "content", "weights"}


def test_windows_only_when_asked(loaded: Loaded) -> None:
    content = wav(6)
    asked = json.dumps({"audio": base64.b64encode(content).decode(), "windows": True}).encode()
    answers = [loaded.ask({"body": asked}), loaded.ask({"audio": content, "windows": b"1"})]
    answers += [loaded.ask({"body": content}, headers={"X-Spira-Windows": "true"})]
    for ((_, body),) in answers:
        assert len(body["windows"]) == 3
        assert (body["window_seconds"], body["step_seconds"]) == (4.0, 1.0)
        assert body["probability"] == pytest.approx(sum(body["windows"]) / 3, abs=1e-12)
    assert "windows" not in loaded.ask({"audio": content, "windows": b"no"})[0][1]


@pytest.mark.parametrize(
    ("request_", "status", "error"),
    [
        ({}, 400, "no recording"),
        ({"body": b""}, 400, "no recording"),
        ({"body": b"{not json"}, 400, "not JSON"),
        ({"body": b"{}"}, 400, "no recording"),
        ({"body": b'{"audio": 3}'}, 400, "no recording"),
        ({"body": b'{"audio": "%%%"}'}, 400, "no recording"),
        ({"body": [1, 2]}, 400, "no recording"),
        ({"body": b"hello"}, 422, "undecodable"),
        ({"body": wav(0.2)}, 422, "too_short"),
        ({"body": wav(2, level=1e-6)}, 422, "silent"),
        ({"body": wav(2)[:30]}, 422, "undecodable"),
        ({"body": wav(121, rate=8000)}, 422, "too_long"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(
    loaded: Loaded, request_: dict[str, Any], status: int, error: str
) -> None:
    ((found, body),) = loaded.ask(request_)
    assert (found, body["error"]) == (status, error)
    assert body["detail"]


def test_a_bad_item_costs_its_neighbours_nothing(loaded: Loaded) -> None:
    alone = loaded.ask({"body": wav(3, seed=1)})[0][1]["probability"]
    loud, quiet = wav(9, seed=2, level=0.6), wav(2, seed=3, level=0.002)
    answers = loaded.ask({"body": b"garbage"}, {"body": loud}, {"body": wav(3, seed=1)}, {}, {"body": quiet})
    assert [status for status, _ in answers] == [422, 200, 200, 400, 200]
    assert abs(answers[2][1]["probability"] - alone) <= 1e-6


def test_answers_are_the_same_in_hundreds_of_mixed_batches(loaded: Loaded) -> None:
    """Whatever shares the forward pass, and however many do: one loud neighbour once changed a patient's answer."""
    random = Random(7)
    levels = (0.6, 0.6, 0.1, 0.02, 0.002)
    sounds = [wav(random.uniform(0.6, 9), seed, random.choice(levels)) for seed in range(30)]
    alone = [loaded.ask({"body": sound})[0][1]["probability"] for sound in sounds]
    assert max(alone) - min(alone) > 1e-3  # they can be told apart
    sizes = set()
    for _ in range(300):
        picked = random.choices(range(len(sounds)), k=random.randint(1, 8))
        bad = [{"body": b"garbage"}] * random.randint(0, 2)
        batch = [({"body": sounds[number]}, number) for number in picked] + [(each, None) for each in bad]
        random.shuffle(batch)
        sizes.add(len(batch))
        for (status, body), (_, number) in zip(loaded.ask(*(each for each, _ in batch)), batch, strict=True):
            assert status == (422 if number is None else 200)
            assert number is None or abs(body["probability"] - alone[number]) <= 1e-6
    assert sizes == set(range(1, 11))


def test_a_recording_unlike_the_training_data_is_answered_with_a_warning(loaded: Loaded) -> None:
    familiar, telephone = wav(5), wav(5, rate=8000)
    (answer,) = loaded.handler.predictor.predict([torch.from_numpy(as_float(decode(familiar, **LIMITS)))])
    here = {"numeric": {"bandwidth_hz": {"edges": [7000.0, 7500.0, 7900.0], "median": 7500.0}}}
    here["features"] = {"mean": answer.features, "sd": [1.0] * len(answer.features)}
    loaded.handler.reference = here
    try:
        as_trained, unlike = loaded.ask({"body": familiar}, {"body": telephone})
    finally:
        loaded.handler.reference = {}
    assert as_trained[1]["warnings"] == []
    assert unlike[1]["warnings"] == ["unfamiliar_bandwidth", "unfamiliar_sound"]


def test_a_fault_in_one_item_stays_there(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = loaded.handler.audio.decode

    def fragile(content: bytes, **limits: float) -> Any:
        if content == b"bomb":
            raise ZeroDivisionError
        return decode(content, **limits)

    monkeypatch.setattr(loaded.handler.audio, "decode", fragile)
    answers = loaded.ask({"body": b"bomb"}, {"body": wav(2)})
    assert [status for status, _ in answers] == [422, 200]


def test_doubtful_recordings_are_answered_with_a_warning(loaded: Loaded) -> None:
    quiet, fine = loaded.ask({"body": wav(5, level=0.003)}, {"body": wav(5)})
    short = loaded.ask({"body": wav(2)})[0]
    assert quiet[1]["warnings"] == ["quiet"]
    assert fine[1]["warnings"] == []
    assert short[1]["warnings"] == ["short"]


def test_a_model_that_gives_no_number_is_an_error_not_an_answer(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = type("P", (), {"probability": float("nan"), "windows": []})()
    monkeypatch.setattr(loaded.handler, "predict", lambda waveforms: [broken])
    ((status, body),) = loaded.ask({"body": wav(2)})
    assert (status, body["error"]) == (500, "not a number")


def test_it_describes_itself(loaded: Loaded) -> None:
    ((status, body),) = loaded.ask({"body": b""}, headers={"describe": "True"})
    assert status == 200
    assert body["blessing"]["verdict"] == "blessed"
    assert body["blessing"]["model"] == body["model"]["weights"]


def test_weights_that_were_not_blessed_do_not_load(loaded: Loaded, tmp_path: Path) -> None:
    run, _, _ = packaged(tmp_path, seed=9)
    with ZipFile(archive_of(run)) as archive:
        archive.extractall(tmp_path / "unpacked")
    weights = tmp_path / "unpacked" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RuntimeError, match="not the blessed ones"):
        Loaded(tmp_path / "unpacked")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=200), st.tuples(st.integers(0, 43), st.binary(min_size=1, max_size=8))))
def test_no_bytes_make_it_fail(loaded: Loaded, noise: bytes | tuple[int, bytes]) -> None:
    content = bytearray(wav(0.6))
    if isinstance(noise, tuple):
        content[noise[0] : noise[0] + len(noise[1])] = noise[1]
    ((status, body),) = loaded.ask({"body": bytes(content) if isinstance(noise, tuple) else noise})
    assert status in (200, 400, 422), body
