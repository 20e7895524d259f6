"""Each network by name: construct, forward, every weight learns; SPIRA v1 has its published size."""

import pytest
import torch

from spira_train.model import MODELS, build, parameters
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
