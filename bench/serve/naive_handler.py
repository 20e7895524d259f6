"""What a first handler looks like: TorchServe's BaseHandler, one request at a time, settings as they come.

It computes the same probability with the same network. What it leaves out is what the benchmark is about.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

import soundfile
import torch
from ts.torch_handler.base_handler import BaseHandler


class NaiveHandler(BaseHandler):
    """Three methods that everybody writes."""

    def initialize(self, context: Any) -> None:
        """Load the network."""
        folder = Path(context.system_properties["model_dir"])
        sys.path.insert(0, str(folder))
        from spira_train import inference

        self.predictor = inference.load(folder)
        self.initialized = True

    def preprocess(self, data: list[dict[str, Any]]) -> list[torch.Tensor]:
        """Bytes of a 16 kHz WAV file -> (T,) each."""
        contents = [request.get("data") or request.get("body") for request in data]
        return [torch.from_numpy(soundfile.read(io.BytesIO(bytes(c)), dtype="float32")[0]) for c in contents]

    def inference(self, data: list[torch.Tensor], *_: Any, **__: Any) -> list[float]:
        """One recording after the other."""
        return [self.predictor.predict([waveform])[0].probability for waveform in data]

    def postprocess(self, data: list[float]) -> list[str]:
        """One JSON answer each."""
        return [json.dumps({"probability": probability}) for probability in data]
