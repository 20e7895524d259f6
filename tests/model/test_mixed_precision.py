"""Mixed precision: bfloat16 in the training's forward pass alone, and nothing else changes where it is off."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import CONFIG, fitted, same, toy

from spira_train import train
from spira_train.metrics import proportion
from spira_train.model import MODELS, MishPool, build
from spira_train.tracking import Tracker


def learnt(folder: Path, device: str, *, mixed: bool) -> np.ndarray:
    """Which recordings of `toy` are answered rightly after eight epochs of the preset `fast`: (2 R,)."""
    settings = {"epochs": 8, "mixed_precision": mixed}
    config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update=settings)})
    data, place = toy(60), torch.device(device)
    state = train.fit(data, data, config, place, folder / f"{device}-{mixed}", Tracker(None, folder, config))
    state.network.load_state_dict(state.best)
    heard = train.answers(state.network, torch.from_numpy(data.variants).to(place), data).cpu().numpy()  # (2, R)
    return ((heard > 0.5) == (data.labels > 0.5)).ravel()


def test_off_leaves_every_weight_as_it_was(tmp_path, monkeypatch):
    off = fitted(tmp_path / "off")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    assert same(off.best, fitted(tmp_path / "without").best)


def test_on_is_finite_and_close_and_another_training(tmp_path):
    off, on = fitted(tmp_path / "off"), fitted(tmp_path / "on", mixed_precision=True)
    assert not same(off.best, on.best)
    assert np.isfinite(on.curves["loss"]).all()
    assert on.curves["loss"] == pytest.approx(off.curves["loss"], rel=0.02)
    assert on.curves["validation_loss"] == pytest.approx(off.curves["validation_loss"], rel=0.02)


def test_what_is_judged_and_kept_is_float32(tmp_path):
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

    def look(module, _, given):
        if type(module) in MODELS.values():
            seen[module.training].add(given.dtype)

    with torch.nn.modules.module.register_module_forward_hook(look):
        state = fitted(tmp_path, mixed_precision=True)
    assert seen == {True: {torch.bfloat16}, False: {torch.float32}}
    kept = [*state.best.values(), *state.average.values(), *state.network.state_dict().values()]
    kept += [value for moments in state.optimiser.state.values() for value in moments.values()]
    assert {value.dtype for value in kept} == {torch.float32}


@pytest.mark.parametrize("name", list(MODELS))
def test_every_network_learns_in_the_same_direction(name):
    torch.manual_seed(0)
    network = build(name, frames=401, coefficients=40, dropout=0.0).train()
    windows, wanted = 20 * torch.randn(16, 1, 401, 40), torch.arange(16.0) % 2
    slopes = []
    for on in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            logits = network(windows)
        assert (logits.dtype == torch.bfloat16) is on
        torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), wanted).backward()
        slopes.append(torch.cat([weight.grad.flatten() for weight in network.parameters()]))
    assert float(torch.cosine_similarity(*slopes, dim=0)) > 0.97
    assert not torch.equal(*slopes)


def test_mish_and_pooling_in_bfloat16_are_as_near_as_its_eight_bits_allow():
    maps = (8 * torch.randn(4, 3, 21, 8, generator=torch.Generator().manual_seed(0))).bfloat16()
    ours, theirs = maps.clone().requires_grad_(), maps.float().requires_grad_()
    out, exact = MishPool()(ours), torch.nn.functional.max_pool2d(torch.nn.functional.mish(theirs), (2, 1))
    assert torch.allclose(out.float(), exact, rtol=2**-6, atol=2**-6)
    out.sum().backward()
    exact.sum().backward()
    assert out.dtype == ours.grad.dtype == torch.bfloat16
    # two frames that mish makes equal in bfloat16 may be told apart in float32: the gradient goes to either
    assert float(torch.cosine_similarity(ours.grad.float().flatten(), theirs.grad.flatten(), dim=0)) > 0.999


def test_a_resumed_training_repeats_the_same_steps(tmp_path):
    whole = fitted(tmp_path / "whole", epochs=4, mixed_precision=True)
    fitted(tmp_path / "torn", epochs=2, mixed_precision=True)
    assert same(whole.best, fitted(tmp_path / "torn", epochs=4, mixed_precision=True).best)
    assert (tmp_path / "torn/checkpoint").read_bytes() == (tmp_path / "whole/checkpoint").read_bytes()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_it_is_right_as_often_within_the_interval(tmp_path, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    plain = learnt(tmp_path, "cpu", mixed=False)
    expected = proportion(plain, np.tile(np.arange(60), 2))
    assert expected["low"] > 0.6  # there was something to lose
    mixed = learnt(tmp_path, device, mixed=True)
    assert mixed.mean() >= expected["low"]
    if device == "cuda":
        assert learnt(tmp_path, device, mixed=False).mean() >= expected["low"]
