"""Each network by name: construct, forward, every weight learns; SPIRA v1 has its published size."""

import pytest
import torch
from torchaudio.functional import create_dct

from spira_train.model import MODELS, Dropout, MishPool, build, parameters
from spira_train.outcome import BadInput


def test_spira_v1_has_its_published_number_of_parameters():
    assert parameters(build("spira_v1", frames=401, coefficients=40, dropout=0.7)) == 691_613


@pytest.mark.parametrize("name", MODELS)
def test_forward_gives_one_logit_a_window(name):
    network = build(name, frames=401, coefficients=40, dropout=0.1)
    assert network(torch.randn(3, 1, 401, 40)).shape == (3,)


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_changes_and_the_loss_falls(name):
    torch.manual_seed(0)
    network = build(name, frames=401, coefficients=40, dropout=0.0)
    before = {k: v.clone() for k, v in network.named_parameters()}
    x, y = torch.randn(6, 1, 401, 40) * 10, torch.tensor([0.0, 1, 0, 1, 0, 1])
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert [k for k, v in network.named_parameters() if torch.equal(v, before[k])] == []


def test_unknown_name_lists_the_known():
    with pytest.raises(BadInput, match=r"'resnet' is unknown; allowed: spira_v1, spira_small"):
        build("resnet", frames=401, coefficients=40, dropout=0.1)


def test_too_short_a_window_is_told():
    with pytest.raises(BadInput, match="too few for spira_v1"):
        build("spira_v1", frames=20, coefficients=40, dropout=0.1)


@pytest.mark.parametrize(("frames", "scale"), [(9, 1.0), (10, 30.0), (2, 0.1)])
def test_mish_and_pooling_in_one_give_what_torchs_two_layers_give(frames, scale):
    torch.manual_seed(0)
    ours = (torch.randn(2, 3, frames, 5) * scale).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    one, two = MishPool()(ours), torch.nn.functional.max_pool2d(torch.nn.functional.mish(theirs), (2, 1))
    assert torch.allclose(one, two, rtol=1e-5, atol=1e-6)
    above = torch.randn_like(one)
    one.backward(above)
    two.backward(above)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_dropout_keeps_its_share_and_the_mean_and_follows_torchs_seed():
    layer, ones = Dropout(0.7), torch.ones(400, 501)
    torch.manual_seed(1)
    dropped = layer(ones)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.7, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.3], rel=1e-3)
    assert not torch.equal(layer(ones), dropped)
    torch.manual_seed(1)
    assert torch.equal(layer(ones), dropped)
    assert torch.equal(Dropout(0.0)(ones), ones)
    assert torch.equal(layer.eval()(ones), ones)


@pytest.mark.parametrize("name", MODELS)
def test_an_answer_does_not_depend_on_its_neighbours(name):
    torch.manual_seed(0)
    network, x = build(name, frames=401, coefficients=40, dropout=0.3).eval(), torch.randn(5, 1, 401, 40) * 10
    with torch.inference_mode():
        alone = torch.cat([network(one[None]) for one in x])
        assert torch.allclose(torch.sigmoid(network(x)), torch.sigmoid(alone), atol=1e-6)


@pytest.fixture
def windows():
    """(4, 1, 601, 64): the last 200 frames of the second are padding, digital silence as MFCC show it."""
    torch.manual_seed(0)
    x = torch.randn(4, 1, 601, 64) * 10
    x[1, :, 401:, 1:] = 0
    x[1, :, 401:, 0] = -300
    return x


def bands(dropout: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(1)
    return build("spira_bands", frames=601, coefficients=64, dropout=dropout).eval()


@torch.inference_mode()
def test_spira_bands_does_not_hear_how_loud_a_recording_is_nor_what_pads_it(windows):
    network, louder, padded = bands(), windows.clone(), windows.clone()
    louder[..., 0] += 80  # the first coefficient is the level: 10 dB in each of 64 bands
    padded[1, :, 401:, 0] = -500
    assert torch.allclose(network(louder), network(windows), atol=1e-4)
    assert torch.equal(network(padded), network(windows))
    padded[1, :, 400] += 5
    assert not torch.equal(network(padded)[1], network(windows)[1])


@torch.inference_mode()
def test_spira_bands_answers_for_silence_and_is_smaller_than_v1(windows):
    network = bands()
    silence = torch.zeros_like(windows)
    silence[..., 0] = -800
    assert torch.isfinite(network(silence)).all()
    assert parameters(network) == 92_613


@pytest.mark.parametrize("name", ["spira_bands", "spira_short"])
def test_coefficients_are_turned_back_into_the_bands_they_came_from(name):
    network = build(name, frames=401, coefficients=40, dropout=0.0)
    decibels = torch.randn(3, 40) * 10
    assert torch.allclose(decibels @ create_dct(40, 40, "ortho") @ network.basis, decibels, atol=1e-4)
