"""The benchmark of devices, as far as a machine without a GPU can try it."""

import time
from pathlib import Path
from types import SimpleNamespace

import torch
from test_train import CONFIG, toy

from bench import devices


def test_a_row_says_what_was_measured():
    config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"epochs": 3})})
    device, precision, seconds, loss, accuracy, used = devices.measure(
        config, toy(), toy(), torch.device("cpu"), mixed=True
    )
    assert (device, precision, used) == ("cpu", "bfloat16", "-")
    assert float(seconds) > 0
    assert 0 < float(loss) < 5
    value, low, high = (float(word.strip("(,)")) for word in accuracy.replace(" to ", " ").split())
    assert 0 <= low <= value <= high <= 1


def test_how_busy_a_gpu_was_is_what_nvidia_smi_said(tmp_path: Path, monkeypatch):
    tool, said = tmp_path / "nvidia-smi", tmp_path / "said"
    tool.write_text(
        f'#!/bin/sh\nprintf "30\\n[N/A]\\n50\\n"\necho "$@" > {said}.new && mv {said}.new {said}\nexec sleep 60\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1-2"))
    with devices.busy(torch.device("cuda")) as shares:
        while not said.exists():
            time.sleep(0.01)
    assert shares == [30, 50]
    assert said.read_text().startswith("-i GPU-1-2 --query-gpu=utilization.gpu")
    with devices.busy(torch.device("cpu")) as shares:
        said.unlink()
    assert (shares, said.exists()) == ([], False)
