"""The handler inside every archive: a recording in, a probability with its diagnosis out.

It travels with the weights and with its own copy of the `spira_train` modules they were validated with. Every item of
a batch stands for itself: a recording that cannot be used gets its own 4xx with a reason while its neighbours get
answers.
"""

import base64
import binascii
import hashlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from ts.metrics.metric_type_enum import MetricTypes
from ts.utils.util import PredictionException

# Where a recording may be in a request: TorchServe calls a plain body `body` (or `data`), a form names its field.
_FIELDS = ("audio", "data", "body", "file")
_TRUE = {"1", "true", "yes", "on"}
# An answer beyond these comes with a warning; the limits of `extract`, which are wider, are a refusal here as well.
QUIET_DBFS = -45.0
CLIPPED_FRACTION = 0.001


class Handler:
    """TorchServe calls `initialize` once in a worker, then `handle` for each batch."""

    def initialize(self, context: Any) -> None:
        """Load the model of this archive; raises where anything is missing, so that the version never gets READY."""
        folder = Path(context.system_properties["model_dir"])
        sys.path.insert(0, str(folder))  # the archive's own spira_train, whatever is installed beside it
        import torch

        from spira_train import audio, inference, memory, novelty

        memory.keep()
        torch.set_num_threads(1)  # one worker, one core: more would only fight over them
        self.audio, self.novelty = audio, novelty
        self.torch = torch
        self.predictor = inference.load(folder)
        self.lineage = json.loads((folder / "lineage.json").read_text())
        self.blessing = json.loads((folder / "blessing.json").read_text())
        statistics = folder / "statistics.json"  # of the training data
        self.reference = json.loads(statistics.read_text()).get("data", {}) if statistics.is_file() else {}
        weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        if weights != self.blessing["model"]:
            raise RuntimeError(f"the weights {weights[:12]} are not the blessed ones {self.blessing['model'][:12]}")
        self.identity = {name: self.lineage[name] for name in ("name", "version", "content")} | {"weights": weights}
        measured = {"PredictionSeconds": "s", "BatchRecordings": "Count", "RecordingWindows": "Count"}
        self.metrics = {
            name: context.metrics.add_metric_to_cache(name, unit, ["ModelName", "ModelVersion"], MetricTypes.HISTOGRAM)
            for name, unit in measured.items()
        }
        self.predictor.predict([torch.zeros(self.predictor.size)])  # the first pass is slow: let no patient wait for it

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[str]:
        """One JSON answer for each request in `data`; the status of each is set in `context`."""
        started = time.perf_counter()
        decoded = [self._attempt(request, _headers(context, i)) for i, request in enumerate(data)]
        predictions = iter(self.predict([item[0] for item in decoded if isinstance(item, tuple)]))
        answers = []
        for index, item in enumerate(decoded):
            status, answer = 200, {}
            if item is None:
                answer = self.describe()
            elif isinstance(item, PredictionException):
                status, answer = item.error_code, json.loads(item.message)
            else:
                prediction, (_, recording, windows) = next(predictions), item
                self._measure("RecordingWindows", len(prediction.windows))
                if math.isfinite(prediction.probability):
                    answer = self.encode(prediction, recording, windows)
                else:
                    status, answer = 500, {"error": "not a number", "detail": "the model gave no probability"}
            context.set_response_content_type(index, "application/json")
            context.set_response_status(status, "", index)  # without its index it would be the first request's
            named = {"request_id": context.get_request_id(index), "model": self.identity}
            answers.append(json.dumps(answer | named))
        self._measure("BatchRecordings", len(data))
        self._measure("PredictionSeconds", time.perf_counter() - started)
        return answers

    def decode(self, request: dict[str, Any], headers: dict[str, str]) -> tuple[Any, Any, bool]:
        """One request -> ((T,) float32 waveform at the model's rate, its `Audio`, whether windows are asked for)."""
        content, options = _content(request)
        try:
            recording = self.audio.decode(content, **self.lineage["limits"])
        except self.audio.AudioError as error:
            raise _refusal(422, str(error.reason), str(error.detail)) from None
        waveform = self.torch.from_numpy(self.audio.as_float(recording))  # (T,)
        windows = str(options.get("windows", headers.get("x-spira-windows", ""))).lower() in _TRUE
        return waveform, recording, windows

    def predict(self, waveforms: list[Any]) -> list[Any]:
        """Waveforms, each (T,) -> one prediction each; all of a batch in one call."""
        return self.predictor.predict(waveforms) if waveforms else []

    def encode(self, prediction: Any, recording: Any, windows: bool) -> dict[str, Any]:
        """The answer to one recording."""
        calibrated = self.predictor.calibrate(prediction.probability)
        heard = {name: round(getattr(recording, name), 3) for name in self.novelty.FACTS}
        answer = {
            "probability": prediction.probability,
            "calibrated": calibrated,
            "diagnosis": self.predictor.diagnosis(calibrated),
            "warnings": self.warnings(heard, recording, prediction.features),
            "heard": heard,
            "decision": {name: self.predictor.description["decision"][name] for name in ("threshold", "band")},
        }
        if not windows:
            return answer
        rate = self.audio.SAMPLE_RATE
        cut = {"window_seconds": self.predictor.size / rate, "step_seconds": self.predictor.step / rate}
        return answer | {"windows": prediction.windows} | cut

    def warnings(self, heard: dict[str, float], recording: Any, features: list[float]) -> list[str]:
        """What makes an answer doubtful: a poor recording, or one unlike all that the model was trained on."""
        doubts = {
            "short": len(recording.samples) < self.predictor.size,  # padded with silence to one window
            "quiet": recording.rms_dbfs < QUIET_DBFS,
            "clipped": recording.clipped > CLIPPED_FRACTION,
        }
        unlike = self.novelty.warnings(self.reference, heard, features)
        return [name for name, present in doubts.items() if present] + unlike

    def describe(self) -> dict[str, Any]:
        """What `GET /models/{name}/{version}?customized=true` shows."""
        names = ("network", "features", "calibration", "decision")
        shown = {name: self.predictor.description.get(name) for name in names}
        return {"model": self.identity, **shown, "blessing": self.blessing, "lineage": self.lineage}

    def _measure(self, name: str, value: float) -> None:
        self.metrics[name].add_or_update(value, [self.identity["name"], self.identity["version"]])

    def _attempt(self, request: dict[str, Any], headers: dict[str, str]) -> Any:
        """What `decode` gives, the refusal it raises, or None for a request to describe the model."""
        if headers.get("describe") == "True":
            return None
        try:
            return self.decode(request, headers)
        except PredictionException as refusal:
            return refusal
        except Exception as error:  # noqa: BLE001 - one recording's fault must not cost its neighbours their answers
            # whatever a sender can provoke is the recording's fault, never the server's
            return _refusal(422, "undecodable", f"this recording could not be read ({type(error).__name__})")


def _headers(context: Any, index: int) -> dict[str, str]:
    return {k.lower(): v for k, v in context.get_all_request_header(index).items() if isinstance(v, str)}


def _refusal(status: int, reason: str, detail: str) -> PredictionException:
    """400: not a request we know; 422: not a usable recording (TorchServe itself says 400 to a wrong token)."""
    return PredictionException(json.dumps({"error": reason, "detail": detail}), status)


def _content(request: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The recording's bytes and the options beside it, from a raw body, a form, or JSON `{"audio": base64}`."""
    field = next((name for name in _FIELDS if request.get(name)), None)
    if field is None:
        raise _refusal(400, "no recording", "send the audio file as the body, as the form field `audio`, or as JSON")
    value = request[field]
    options = {k: _text(v) for k, v in request.items() if k != field}
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes | bytearray) and bytes(value[:64]).lstrip()[:1] == b"{":
        try:
            value = json.loads(bytes(value))
        except (ValueError, RecursionError):
            raise _refusal(400, "not JSON", "the body begins like JSON but is not") from None
    if isinstance(value, dict):
        options |= {k: v for k, v in value.items() if k != "audio"}
        try:
            return base64.b64decode(value["audio"], validate=True), options
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise _refusal(400, "no recording", 'JSON must be {"audio": "<base64>"}') from None
    if not isinstance(value, bytes | bytearray):
        raise _refusal(400, "no recording", f"expected audio bytes, got {type(value).__name__}")
    return bytes(value), options


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes | bytearray) else value
