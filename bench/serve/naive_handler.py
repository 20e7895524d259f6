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
from torchaudio.transforms import MFCC
from ts.torch_handler.base_handler import BaseHandler


class NaiveHandler(BaseHandler):
    """Three methods that everybody writes."""

    def initialize(self, context: Any) -> None:
        """Load the network."""
        folder = Path(context.system_properties["model_dir"])
        sys.path.insert(0, str(folder))
        from spira_train import inference

        self.predictor = inference.load(folder)
        settings = dict(self.predictor.description["features"])
        mel = {name: settings[name] for name in ("n_fft", "n_mels", "win_length", "hop_length")}
        self.mfcc = MFCC(settings["sample_rate"], settings["n_mfcc"], log_mels=False, melkwargs=mel)
        self.initialized = True

    def preprocess(self, data: list[dict[str, Any]]) -> list[torch.Tensor]:
        """Bytes of a 16 kHz WAV file -> (T,) each."""
        contents = [request.get("data") or request.get("body") for request in data]
        return [torch.from_numpy(soundfile.read(io.BytesIO(bytes(c)), dtype="float32")[0]) for c in contents]

    def inference(self, data: list[torch.Tensor], *_: Any, **__: Any) -> list[float]:
        """One recording after the other, one window after the other."""
        with torch.inference_mode():
            return [float(torch.stack([self.answer(w) for w in self.windows(one)]).mean()) for one in data]

    def windows(self, waveform: torch.Tensor) -> torch.Tensor:
        """(T,) -> (W, size)."""
        from spira_train.features import cut

        return cut(waveform, self.predictor.size, self.predictor.step)

    def answer(self, window: torch.Tensor) -> torch.Tensor:
        """(size,) -> P(insufficiency)."""
        features = self.mfcc(window[None]).transpose(1, 2)[None]  # (1, 1, frames, n_mfcc)
        return torch.sigmoid(self.predictor.network(features)[0])

    def postprocess(self, data: list[float]) -> list[str]:
        """One JSON answer each."""
        return [json.dumps({"probability": probability}) for probability in data]
