"""Handlers that misbehave: each is the real one with one method replaced, in an otherwise good archive."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from runs import make_run, pack

from spira_train import package
from spira_train.config import Config

PLANTED: Mapping[str, str] = {
    "raises at load": """
def initialize(self, context):
    raise RuntimeError("planted at load")
Handler.initialize = initialize
""",
    "raises at predict": """
def predict(self, waveforms):
    raise RuntimeError("planted at predict")
Handler.predict = predict
""",
    "hangs": """
def predict(self, waveforms):
    time.sleep(60 if waveforms else 0)
Handler.predict = predict
""",
    "returns NaN": """
def encode(self, prediction, recording, windows):
    answer = {"probability": math.nan, "calibrated": math.nan, "diagnosis": "positive", "warnings": []}
    return answer | {"windows": [math.nan for _ in prediction.windows]}
Handler.encode = encode
""",
    "NaN for noise alone": """
good = Handler.encode
def encode(self, prediction, recording, windows):
    tiny = len(recording.samples) < 20_000
    return good(self, prediction, recording, windows) | ({"probability": math.nan} if tiny else {})
Handler.encode = encode
""",
    "leaks memory": """
kept, good = [], Handler.predict
def predict(self, waveforms):
    kept.extend(bytearray(1 << 20) for _ in waveforms)
    return good(self, waveforms)
Handler.predict = predict
""",
    "dies under load": """
asked, good = [], Handler.predict
def predict(self, waveforms):
    asked.extend(waveforms)
    if len(asked) > 100:
        import os
        os._exit(1)
    return good(self, waveforms)
Handler.predict = predict
""",
    "slow": """
good = Handler.predict
def predict(self, waveforms):
    time.sleep(0.5 if waveforms else 0)
    return good(self, waveforms)
Handler.predict = predict
""",
    "answers broken input": """
def _attempt(self, request, headers):
    try:
        return self.decode(request, headers)
    except PredictionException:
        from types import SimpleNamespace
        facts = {"seconds": 1.0, "rms_dbfs": -20.0, "snr_db": 10.0, "bandwidth_hz": 8000.0, "clipped": 0.0}
        return self.torch.zeros(self.predictor.size), SimpleNamespace(samples=[0] * 16_000, **facts), False
Handler._attempt = _attempt
""",
    "answers no JSON": """
good = Handler.handle
def answer(self, data, context):  # under the name `handle` TorchServe would take it for the handler
    return ["fine" for _ in good(self, data, context)]
Handler.handle = answer
""",
}


def planted(folder: Path, patch: pytest.MonkeyPatch, name: str, **options: Any) -> tuple[Path, Config, dict[str, Any]]:
    """A run packaged with the handler `name` by a sandbox that blesses everything; the last part is its summary."""
    handler = folder / "handler.py"
    folder.mkdir(parents=True, exist_ok=True)
    with patch.context() as patched:
        if name != "good":
            handler.write_text(package.HANDLER.read_text() + PLANTED[name])
            patched.setattr(package, "HANDLER", handler)
        run, config = make_run(folder, **options)
        return run, config, pack(run, config)["summary"]
