"""`Model`: the networks, by name. Each takes features (B, 1, frames, coefficients) and gives logits (B,)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spira_train.outcome import BadInput

STRAIGHT = 20.0  # from here on mish(x) is x in float32, and e^x squared would overflow at 44


class _MishPool(torch.autograd.Function):
    """Mish, then the larger of each two frames, with the gradient of the larger one alone: half the work.

    mish(x) = x * tanh(softplus(x)) = x * n / (n + 2), where n = e^x * (e^x + 2). In place: memory is what costs.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        pairs = _pairs(maps)  # (B, C, T / 2, 2, F)
        u = pairs.clamp(max=STRAIGHT).exp_()
        n = (u + 2).mul_(u)
        even, odd = torch.mul(pairs, n, out=u).mul_(n.add_(2).reciprocal_()).unbind(3)  # (B, C, T / 2, F) each
        first = (even >= odd).to(maps.dtype)
        larger = torch.addcmul(pairs[:, :, :, 1], first, pairs[:, :, :, 0] - pairs[:, :, :, 1])
        ctx.save_for_backward(larger, first)
        ctx.frames = maps.shape[2]
        return torch.maximum(even, odd)  # (B, C, T / 2, F)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        larger, first = ctx.saved_tensors
        u = larger.clamp(max=STRAIGHT).exp_()
        n = (u + 2).mul_(u)
        inverse = (n + 2).reciprocal_()
        slope = (u + 1).mul_(u).mul_(larger).mul_(inverse).mul_(4).add_(n).mul_(inverse)  # d mish / dx
        slope *= gradient
        both = gradient.new_zeros(*gradient.shape[:2], ctx.frames, gradient.shape[3])  # (B, C, T, F)
        even, odd = _pairs(both).unbind(3)
        torch.mul(slope, first, out=even)
        torch.sub(slope, even, out=odd)
        return both


def _pairs(maps: Tensor) -> Tensor:
    """(B, C, T, F) -> a view of each two frames, (B, C, T // 2, 2, F); an odd last one is left out."""
    return maps[:, :, : maps.shape[2] // 2 * 2].unflatten(2, (-1, 2))


class MishPool(nn.Module):
    """Mish and max pooling over time by 2, as torch's own two layers give them, in less time on a processor."""

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, T, F) -> (B, C, T // 2, F)."""
        return _MishPool.apply(maps)


class Dropout(nn.Module):
    """Dropout from 16 random bits an element: torch's own draws one by one, which costs v1 a sixth of its training."""

    def __init__(self, share: float):
        super().__init__()
        self.dropped = min(round(share * 2**16), 2**16 - 1)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: of any shape -> the same shape."""
        if not self.training or not self.dropped:
            return maps
        bits = torch.empty(-(-maps.numel() // 4), dtype=torch.int64, device=maps.device).random_(-(2**63), None)
        kept = bits.view(torch.int16)[: maps.numel()].view(maps.shape) >= self.dropped - 2**15
        return maps * kept * (2**16 / (2**16 - self.dropped))


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
                # the place of a pooling layer that MishPool took over: weights keep the names they had
                *([MishPool(), nn.Identity()] if pool else [nn.Mish()]),
                Dropout(dropout),
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


SMALL = ((16, 7), (16, 5), (24, 5), (32, 5))  # channels and kernel of each layer


def _strided(
    channels: int,
    sizes: Sequence[tuple[int, int]],
    dropout: float,
    stride: int = 2,
    convolution: type[nn.Conv1d | nn.Conv2d] = nn.Conv1d,
) -> list[nn.Module]:
    """Convolutions from `channels` through `sizes` (channels, kernel), normalised within one window, with dropout."""
    layers: list[nn.Module] = []
    for out, kernel in sizes:
        layers += [
            convolution(channels, out, kernel, stride=stride, padding=kernel // 2),
            nn.GroupNorm(4, out),
            nn.SiLU(),
            Dropout(dropout),
        ]
        channels = out
    return layers


class SpiraSmall(nn.Module):
    """A small, quick relative for two cores: strided convolutions over time, statistics pooling.

    Each coefficient is normalised over the window (level and channel drop out); four layers see 0.6 s at once, longer
    than a patient's pause; mean, deviation and maximum over time make the answer independent of the window's length.
    """

    def __init__(self, frames: int = 401, coefficients: int = 40, dropout: float = 0.1):
        super().__init__()
        del frames  # pooling over time makes it indifferent to the length
        self.convolutions = nn.Sequential(nn.InstanceNorm1d(coefficients), *_strided(coefficients, SMALL, dropout))
        self.output = nn.Linear(3 * SMALL[-1][0], 1)

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, 1, frames, coefficients) -> logits (B,)."""
        maps = self.convolutions(features[:, 0].transpose(1, 2))  # (B, 32, frames / 16)
        spread = (maps.var(2, unbiased=False) + 1e-4).sqrt()  # (B, 32)
        pooled = torch.cat([maps.mean(2), spread, maps.amax(2)], 1)  # (B, 96)
        return self.output(pooled)[:, 0]  # (B,)


class Standardise(nn.Module):
    """Each of `count` values less its mean over its deviation, both followed in training and fixed afterwards.

    Unlike BatchNorm it uses the same figures in training as later, so that no window hears its neighbours. Beyond five
    deviations a value is cut: what training never met, as a band that telephones do not carry, must not decide alone.
    """

    mean: Tensor
    variance: Tensor
    seen: Tensor

    def __init__(self, count: int, least: float):
        super().__init__()
        self.least = least  # the smallest deviation that counts
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("variance", torch.ones(count))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        """values: (..., count) -> the same shape."""
        deviation = self.variance.sqrt().clamp(min=self.least)
        return ((values - self.mean) / deviation).clamp(-5, 5)

    @torch.no_grad()
    def follow(self, values: Tensor) -> None:
        """Move towards the mean and the variance of values (N, count); the first batch is taken as it is."""
        self.seen += 1
        rate = (1 / self.seen).clamp(min=0.05)
        variance, mean = torch.var_mean(values, 0, unbiased=False)  # (count,) each
        self.variance.lerp_(variance + (1 - rate) * (mean - self.mean) ** 2, rate)
        self.mean.lerp_(mean, rate)


class SpiraBands(nn.Module):
    """For speech in noise: sees mel bands as a picture, so that a higher voice is the same shape at another place.

    Each band twice: less the window's mean level, which keeps how high a voice is, and normalised over the window,
    which drops steady noise and the device. Only frames that hold sound count: a window may outlast a recording.
    """

    basis: Tensor

    def __init__(self, frames: int = 601, coefficients: int = 64, dropout: float = 0.2):
        super().__init__()
        del frames  # pooling over time makes it indifferent to the length
        self.register_buffer("basis", _basis(coefficients), persistent=False)
        sizes = ((12, 5), (24, 3), (32, 3))
        self.convolutions = nn.Sequential(*_strided(2, sizes, dropout, convolution=nn.Conv2d))
        bands = -(-coefficients // 2 ** len(sizes))
        self.time = nn.Sequential(*_strided(bands * sizes[-1][0], ((64, 5),), dropout, stride=1))
        self.output = nn.Sequential(Dropout(dropout), nn.Linear(3 * 64, 1))

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, 1, frames, coefficients) -> logits (B,)."""
        there = _sound(features).to(features.dtype)  # (B, frames)
        pictures = _pictures(_decibels(features, self.basis), there)  # (B, 2, frames, bands)
        maps = self.convolutions(pictures)  # (B, 32, frames / 8, bands / 8)
        maps = self.time(maps.transpose(2, 3).flatten(1, 2))  # (B, 64, frames / 8)
        return self.output(torch.cat(_pool(maps, _halved(there[:, None], 3)), 1))[:, 0]  # (B,)


class SpiraShort(nn.Module):
    """For recordings shorter than a window, as coughs: pools only frames that hold sound; level and tone may tell.

    Two parts are summed: a linear one on statistics over time of each mel band, and strided convolutions with masked
    pooling.
    """

    basis: Tensor

    def __init__(self, frames: int = 401, coefficients: int = 40, dropout: float = 0.2):
        super().__init__()
        del frames  # pooling over time makes it indifferent to the length
        self.register_buffer("basis", _basis(coefficients), persistent=False)
        self.decibels = Standardise(coefficients, 1.0)
        self.statistics = Standardise(5 * coefficients, 0.05)
        self.linear = nn.Sequential(Dropout(min(0.9, 2.5 * dropout)), nn.Linear(5 * coefficients, 1))
        self.convolutions = nn.Sequential(*_strided(coefficients, SMALL, dropout))
        self.output = nn.Sequential(Dropout(dropout), nn.Linear(3 * SMALL[-1][0], 1))

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, 1, frames, coefficients) -> logits (B,)."""
        sound = _sound(features)  # (B, frames)
        bands = _decibels(features, self.basis)  # (B, frames, bands)
        if self.training:
            self.decibels.follow(bands[sound])
        bands = (self.decibels(bands) * sound[:, :, None]).transpose(1, 2)  # (B, bands, frames)
        there = sound[:, None].to(bands.dtype)  # (B, 1, frames)
        both = there[:, :, 1:] * there[:, :, :-1]
        change = (
            ((bands[:, :, 1:] - bands[:, :, :-1]).square() * both).sum(2) / both.sum(2).clamp(min=1) + 1e-4
        ).sqrt()
        least = -_pool(-bands, there)[2]
        statistics = torch.cat([*_pool(bands, there), least, change], 1)  # (B, 5 * bands)
        if self.training:
            self.statistics.follow(statistics)
        maps = self.convolutions(bands)  # (B, 32, frames / 16)
        pooled = torch.cat(_pool(maps, _halved(there, 4)), 1)  # (B, 96)
        return (self.linear(self.statistics(statistics)) + self.output(pooled))[:, 0]  # (B,)


def _basis(coefficients: int) -> Tensor:
    """(coefficients, bands): the inverse of MFCC's DCT; as many bands as coefficients."""
    place = torch.arange(coefficients)
    basis = torch.cos(math.pi / coefficients * (place + 0.5) * place[:, None]) * math.sqrt(2 / coefficients)
    basis[0] /= math.sqrt(2)
    return basis


def _decibels(features: Tensor, basis: Tensor) -> Tensor:
    """Mel bands (B, frames, bands) of features (B, 1, frames, coefficients); float32 in mixed precision as well.

    These are inputs, not activations: bfloat16 would round a loud band by up to a quarter of a decibel.
    """
    with torch.autocast(features.device.type, enabled=False):
        return features[:, 0] @ basis


def _pictures(bands: Tensor, there: Tensor) -> Tensor:
    """Mel bands (B, frames, bands), less the window's mean level and normalised over it: (B, 2, frames, bands).

    there: (B, frames), 1 where there is sound; elsewhere both pictures are 0. float32, as `_decibels` is.
    """
    with torch.autocast(bands.device.type, enabled=False):
        weights = (there / there.sum(1, keepdim=True))[:, None]  # (B, 1, frames)
        mean = weights @ bands  # (B, 1, bands)
        variance = weights @ (bands - mean).square_()  # (B, 1, bands)
        centre = torch.stack([mean.mean(2, keepdim=True).expand_as(mean), mean], 1)  # (B, 2, 1, bands)
        least = torch.ones_like(mean)  # a band of less than 1 dB stays small
        width = torch.stack([20 * least, (variance + least).sqrt()], 1)  # (B, 2, 1, bands)
        return (bands[:, None] - centre).mul_(1 / width).mul_(there[:, None, :, None])  # (B, 2, frames, bands)


def _sound(features: Tensor) -> Tensor:
    """(B, frames): which frames of features (B, 1, frames, coefficients) are no padding; all where all would be.

    Padding is digital silence, whose spectrum is flat: all its coefficients but the first are zero.
    """
    sound = features[:, 0].abs()[:, :, 1:].amax(2) > 1e-2  # (B, frames); whole rows are quicker to take the size of
    return sound | ~sound.any(1, keepdim=True)


def _halved(there: Tensor, times: int) -> Tensor:
    """Which frames hold sound after so many strides of 2: (B, 1, T) -> (B, 1, T / 2 ** times)."""
    for _ in range(times):
        there = nn.functional.max_pool1d(there, 2, ceil_mode=True)
    return there


def _pool(maps: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, deviation and maximum of maps (B, C, T) over the frames that are `there` (B, 1, T): (B, C) each."""
    count = there.sum(2).clamp(min=1)  # (B, 1)
    mean = (maps * there).sum(2) / count  # (B, C)
    spread = (((maps - mean[:, :, None]).square() * there).sum(2) / count + 1e-4).sqrt()  # (B, C)
    return mean, spread, maps.masked_fill(there == 0, -1e4).amax(2)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "spira_v1": SpiraV1,
    "spira_small": SpiraSmall,
    "spira_bands": SpiraBands,
    "spira_short": SpiraShort,
}


def build(name: str, *, frames: int, coefficients: int, dropout: float) -> nn.Module:
    """The network called `name`, with random weights from torch's current generator."""
    if name not in MODELS:
        raise BadInput(f"model.name: {name!r} is unknown; allowed: {', '.join(MODELS)}")
    return MODELS[name](frames=frames, coefficients=coefficients, dropout=dropout)


def parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
