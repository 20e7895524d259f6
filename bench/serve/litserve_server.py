"""The same model behind LitServe: `python litserve_server.py MODEL_FOLDER PORT`. Batches as our handler does."""

import base64
import sys
from pathlib import Path
from typing import Any

import litserve
import torch

from bench.serve.model import LIMITS
from spira_train import audio, inference


class Spira(litserve.LitAPI):
    """LitServe calls these in a worker process."""

    def setup(self, device: str) -> None:
        """Load the network."""
        torch.set_num_threads(1)
        self.predictor = inference.load(Path(sys.argv[1]))

    def decode_request(self, request: dict[str, str]) -> torch.Tensor:
        """{"audio": base64} -> (T,): LitServe hands its workers JSON or forms, no plain bodies."""
        recording = audio.decode(base64.b64decode(request["audio"]), **LIMITS)
        return torch.from_numpy(audio.as_float(recording))

    def batch(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Recordings differ in length: a list is the batch."""
        return list(inputs)

    def predict(self, waveforms: list[torch.Tensor]) -> list[float]:
        """One forward pass for all."""
        return [found.probability for found in self.predictor.predict(waveforms)]

    def unbatch(self, output: list[float]) -> list[float]:
        """As they came."""
        return output

    def encode_response(self, output: float) -> dict[str, Any]:
        """One JSON answer."""
        return {"probability": output}


if __name__ == "__main__":
    server = litserve.LitServer(Spira(max_batch_size=8, batch_timeout=0.005), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
