"""`Model`: the networks, by name. Each takes features (B, 1, frames, coefficients) and gives logits (B,)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from spira_train.outcome import BadInput


class SpiraV1(nn.Module):
    """SPIRA's SpiraConvV2 (Casanova et al., 2021): convolutions over time only, 691,613 parameters at 401 x 40.

    Layers (spira.md, section 3): kernel 7, 5, 3, 2; dilation 2, 2, 2, 1; channels 32, 16, 8, 4; GroupNorm of
    pairs of channels, Mish, max pooling by 2 (not after the last), dropout; then 100 units, then one.
    """

    def __init__(self, frames: int = 401, coefficients: int = 40, dropout: float = 0.7):
        super().__init__()
        layers: list[nn.Module] = []
        channels, length = 1, frames
        for out, kernel, dilation, pool in ((32, 7, 2, True), (16, 5, 2, True), (8, 3, 2, True), (4, 2, 1, False)):
            layers += [
                nn.Conv2d(channels, out, (kernel, 1), dilation=(dilation, 1)),
                nn.GroupNorm(out // 2, out),
                nn.Mish(),
                *([nn.MaxPool2d((2, 1))] if pool else []),
                nn.Dropout(dropout),
            ]
            length = (length - dilation * (kernel - 1)) // (2 if pool else 1)
            channels = out
        if length < 1:
            raise BadInput(f"features: {frames} frames are too few for spira_v1; lengthen features.window_seconds")
        self.convolutions = nn.Sequential(*layers)
        self.hidden = nn.Linear(length * channels * coefficients, 100)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(100, 1)

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, 1, frames, coefficients) -> logits (B,)."""
        maps = self.convolutions(features)  # (B, 4, 43, coefficients)
        flat = maps.transpose(1, 2).flatten(1)  # (B, 43 * 4 * coefficients), time-major as in v1
        hidden = self.dropout(nn.functional.mish(self.hidden(flat)))  # (B, 100)
        return self.output(hidden)[:, 0]  # (B,)


class SpiraSmall(nn.Module):
    """A small, quick relative for two cores: strided convolutions over time, statistics pooling.

    Each coefficient is normalised over the window (level and channel drop out); four layers see 0.6 s at once, longer
    than a patient's pause; mean, deviation and maximum over time make the answer independent of the window's length.
    """

    def __init__(self, frames: int = 401, coefficients: int = 40, dropout: float = 0.1):
        super().__init__()
        del frames  # pooling over time makes it indifferent to the length
        layers: list[nn.Module] = [nn.InstanceNorm1d(coefficients)]
        channels = coefficients
        for out, kernel in ((16, 7), (16, 5), (24, 5), (32, 5)):
            layers += [
                nn.Conv1d(channels, out, kernel, stride=2, padding=kernel // 2),
                nn.GroupNorm(4, out),
                nn.SiLU(),
                nn.Dropout(dropout),
            ]
            channels = out
        self.convolutions = nn.Sequential(*layers)
        self.output = nn.Linear(3 * channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, 1, frames, coefficients) -> logits (B,)."""
        maps = self.convolutions(features[:, 0].transpose(1, 2))  # (B, 32, frames / 16)
        spread = (maps.var(2, unbiased=False) + 1e-4).sqrt()  # (B, 32)
        pooled = torch.cat([maps.mean(2), spread, maps.amax(2)], 1)  # (B, 96)
        return self.output(pooled)[:, 0]  # (B,)


MODELS: dict[str, Callable[..., nn.Module]] = {"spira_v1": SpiraV1, "spira_small": SpiraSmall}


def build(name: str, *, frames: int, coefficients: int, dropout: float) -> nn.Module:
    """The network called `name`, with random weights from torch's current generator."""
    if name not in MODELS:
        raise BadInput(f"model.name: {name!r} is unknown; allowed: {', '.join(MODELS)}")
    return MODELS[name](frames=frames, coefficients=coefficients, dropout=dropout)


def parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
