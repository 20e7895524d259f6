"""What other ways of computing an answer would bring: in process, one thread, ours first, every way checked for parity.

    python -m bench.serve.ways [--preset default] [--count 200] [--json FILE]

A way pays where it is faster and its answers stay within 1e-6 of ours, which is what serving promises. ONNX Runtime and
OpenVINO are measured where they are installed (`make bench-serve` puts them, and this, in its table).
"""

import argparse
import copy
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchaudio.transforms import MFCC

from bench import machine
from bench.serve.model import LIMITS, recording, trained
from spira_train import audio, inference, memory
from spira_train import config as configuration
from spira_train.features import FeatureExtractor, cut
from spira_train.store import write_atomic

Row = dict[str, Any]
Way = Callable[[Tensor], Tensor]
AUDIO = (4.0, 10.0)  # seconds of a recording


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--preset", default="default")
    options.add_argument("--count", type=int, default=200, help="of passes for each figure")
    options.add_argument("--json", type=Path, help="keep the rows there")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    memory.keep()
    with tempfile.TemporaryDirectory(prefix="spira-bench-") as folder:
        run = trained(Path(folder), chosen.preset)
        rows = list(measure(run, Path(folder), chosen.count))
    if chosen.json:
        write_atomic(chosen.json, json.dumps({"machine": machine.describe(), "rows": rows}, indent=1).encode())
    cells = [
        [
            row["part"],
            row["way"],
            *(f"{ms:.2f}" for ms in row["ms"]),
            f"{row['faster']:.2f}",
            f"{row['difference']:.0e}",
        ]
        for row in rows
    ]
    title = f"Ways of computing an answer, preset {chosen.preset}: milliseconds (median), one thread"
    machine.show(title, ("part", "way", *(f"{s:.0f} s" for s in AUDIO), "times as fast", "largest difference"), cells)


def measure(run: Path, folder: Path, count: int) -> Iterator[Row]:
    """One row for each way; the first of each part is ours."""
    sounds = [recording(run, seconds) for seconds in AUDIO]
    predictor = inference.load(run / "train")

    def decode(sound: bytes) -> Tensor:
        return torch.from_numpy(audio.as_float(audio.decode(sound, **LIMITS)))

    waves = [decode(sound) for sound in sounds]  # (T,) each
    yield from rows("decoding", {"WAV, checked": decode, "PCM, unchecked": _pcm}, sounds, count)

    extractor, size, step = predictor.extractor, predictor.size, predictor.step

    def ours(wave: Tensor) -> Tensor:
        return extractor.windows(wave, size, step)  # (W, 1, frames, n_mfcc)

    def each_window(wave: Tensor) -> Tensor:
        return extractor(cut(wave, size, step)[:, None])

    settings = configuration.load(run).features.model_dump()
    ways = {"ours": ours, "every window by itself": each_window, "torchaudio": _torchaudios(settings, size, step)}
    ways["the transform as a matrix product"] = _matrices(extractor, size, step)
    yield from rows("features", ways, waves, count)

    heard = [ours(wave) for wave in waves]
    yield from rows("network", dict(networks(predictor.network, heard, folder)), heard, count)


def rows(part: str, ways: dict[str, Callable[[Any], Tensor]], inputs: list[Any], count: int) -> Iterator[Row]:
    """Time the ways in turns, so that a slow moment of the machine is everybody's; difference: from the first one."""
    with torch.inference_mode():
        expected = [next(iter(ways.values()))(given) for given in inputs]
        times: dict[str, list[list[float]]] = {name: [[] for _ in inputs] for name in ways}
        found = {name: [way(given) for given in inputs] for name, way in ways.items()}
        for _ in range(count):
            for name, way in ways.items():
                for number, given in enumerate(inputs):
                    started = time.perf_counter()
                    way(given)
                    times[name][number].append(1000 * (time.perf_counter() - started))
    medians = {name: [statistics.median(each) for each in lists] for name, lists in times.items()}
    first = next(iter(medians.values()))
    for name, ms in medians.items():
        apart = (float((a - b).abs().max()) for a, b in zip(found[name], expected, strict=True))
        faster = statistics.geometric_mean(a / b for a, b in zip(first, ms, strict=True))
        yield {"part": part, "way": name, "ms": ms, "faster": faster, "difference": max(apart)}


def networks(network: nn.Module, heard: list[Tensor], folder: Path) -> Iterator[tuple[str, Way]]:
    """(name, features -> probabilities (W,)) of each way that is at hand."""

    def answers(logits: Way) -> Way:
        return lambda features: torch.sigmoid(logits(features).double())

    yield "ours", answers(network)
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    yield "channels_last", answers(lambda f: last(f.to(memory_format=torch.channels_last)))
    half = copy.deepcopy(network).to(torch.bfloat16)
    yield "bfloat16", answers(lambda f: half(f.to(torch.bfloat16)).float())
    traced = torch.jit.optimize_for_inference(torch.jit.trace(network, heard[0], check_trace=False))
    yield "TorchScript, frozen", answers(traced)
    compiled = torch.compile(network, dynamic=True)
    yield "torch.compile", answers(compiled)
    if not importlib.util.find_spec("onnxruntime"):
        return
    file = folder / "network.onnx"
    _export(network, heard[-1], file)
    yield "ONNX Runtime", answers(_onnx(file))
    yield "ONNX Runtime, int8", answers(_onnx(_quantised(file, heard)))
    if importlib.util.find_spec("openvino"):
        yield "OpenVINO", answers(_openvino(file))


def _pcm(sound: bytes) -> Tensor:
    """The samples behind a WAV file's header of 44 bytes, as whoever sends plain PCM would have them read."""
    return torch.from_numpy(np.frombuffer(sound, "<i2", offset=44).astype(np.float32) / 32768)


def _torchaudios(settings: dict[str, Any], size: int, step: int) -> Way:
    """torchaudio's MFCC of each window by itself, without the floor 80 dB below its maximum taken for a whole batch."""
    mel = {name: settings[name] for name in ("n_fft", "n_mels", "win_length", "hop_length")}
    transform = MFCC(settings["sample_rate"], settings["n_mfcc"], log_mels=False, melkwargs=mel)

    def features(wave: Tensor) -> Tensor:
        return torch.stack([transform(window[None]).transpose(1, 2) for window in cut(wave, size, step)])

    return features


def _matrices(extractor: FeatureExtractor, size: int, step: int) -> Way:
    """Ours, with the taper and the Fourier transform folded into one matrix."""
    other = copy.deepcopy(extractor)
    length, bins = len(other.taper), other.n_fft // 2 + 1
    angle = 2 * torch.pi * torch.arange(length, dtype=torch.float64)[:, None] * torch.arange(bins) / other.n_fft
    matrix = torch.cat([angle.cos(), angle.sin()], 1) * other.taper.double()[:, None]  # (win_length, 2 bins)
    folded = matrix.float()

    def energies(frames: Tensor) -> Tensor:
        return (frames @ folded).square_().unflatten(-1, (2, bins)).sum(-2) @ other.filters

    other._energies = energies
    return lambda wave: other.windows(wave, size, step)


def _export(network: nn.Module, example: Tensor, file: Path) -> None:
    """The network as ONNX, for any number of windows; `hypot` is not among what torch translates."""
    from onnxscript import opset18

    def hypot(a: Any, b: Any) -> Any:
        return opset18.Sqrt(opset18.Add(opset18.Mul(a, a), opset18.Mul(b, b)))

    torch.onnx.export(
        network,
        (example,),
        file,
        input_names=["features"],
        dynamic_shapes={"features": {0: torch.export.Dim("windows")}},
        dynamo=True,
        verbose=False,
        external_data=False,  # one file
        custom_translation_table={torch.ops.prims.hypot.default: hypot},
    )


def _onnx(file: Path) -> Way:
    import onnxruntime

    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = chosen.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), chosen, providers=["CPUExecutionProvider"])
    return lambda features: torch.from_numpy(session.run(None, {"features": features.numpy()})[0])


def _quantised(file: Path, heard: list[Tensor]) -> Path:
    """The network in int8, its ranges measured on what the benchmark asks."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Windows(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"features": features.numpy()} for features in heard]

        def get_next(self) -> dict[str, Any] | None:
            return self.left.pop() if self.left else None

    prepared, small = file.with_name("prepared.onnx"), file.with_name("int8.onnx")
    quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(small), Windows())
    return small


def _openvino(file: Path) -> Way:
    import openvino

    chosen = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    chosen["INFERENCE_PRECISION_HINT"] = "f32"  # else bfloat16, where the processor has it
    model = openvino.Core().compile_model(str(file), "CPU", chosen)
    return lambda features: torch.from_numpy(model(features.numpy())[0].copy())


if __name__ == "__main__":
    main()
