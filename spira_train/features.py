"""Waveform -> windows -> MFCC. One module for features, validation and the handler: train and serve cannot differ."""

import torch
from torch import Tensor, nn
from torchaudio.transforms import MFCC

FLOOR = 1e-10  # power that counts as silence, torchaudio's `amin`
AT_ONCE = 128  # frames in one transform on a processor: what they need stays in its cache and in the allocator's hands
TOGETHER = 16  # mel bands in one product: each hears a few bins, so that one product of all would mostly add zeros
RANGE_DB = 80.0  # what is fainter than the loudest point of a window by more counts as no fainter, as in SPIRA v1


class FeatureExtractor(nn.Module):
    """MFCC as SPIRA v1 computed them: decibels, floor 80 dB below the loudest point *of each window*.

    Window, mel filters and DCT are torchaudio's. What lies between them is written out, which is twice as fast: only
    the samples under the window enter the transform, the power needs no square root, bands skip what they cannot hear.

    >>> FeatureExtractor()(torch.zeros(2, 1, 64_000)).shape
    torch.Size([2, 1, 401, 40])
    """

    taper: Tensor
    filters: Tensor
    cosines: Tensor

    def __init__(
        self,
        sample_rate: int = 16_000,
        n_mfcc: int = 40,
        n_mels: int = 40,
        n_fft: int = 1200,
        win_length: int = 400,
        hop_length: int = 160,
    ):
        super().__init__()
        mel = {"n_fft": n_fft, "n_mels": n_mels, "win_length": win_length, "hop_length": hop_length}
        if win_length % 2 or n_fft % 2:  # torchaudio shifts its frames by half a sample then; we would not
            raise ValueError(f"win_length {win_length} and n_fft {n_fft} must be even")
        torchaudios = MFCC(sample_rate, n_mfcc, log_mels=False, melkwargs=mel)
        spectrogram, scale = torchaudios.MelSpectrogram.spectrogram, torchaudios.MelSpectrogram.mel_scale
        self.n_fft, self.hop, self.reach = n_fft, hop_length, win_length // 2
        self.register_buffer("taper", spectrogram.window, persistent=False)  # (win_length,)
        # each bin twice, for the squares of its real and its imaginary part
        self.register_buffer("filters", scale.fb.repeat_interleave(2, 0), persistent=False)  # (n_fft + 2, n_mels)
        self.parts = [_heard(self.filters, first, first + TOGETHER) for first in range(0, n_mels, TOGETHER)]
        self.register_buffer("cosines", torchaudios.dct_mat, persistent=False)  # (n_mels, n_mfcc)

    def forward(self, windows: Tensor) -> Tensor:
        """windows: (B, 1, T) float32 in [-1, 1] -> (B, 1, frames, n_mfcc)."""
        if windows.ndim != 3 or windows.shape[1] != 1:
            # torchaudio takes ONE maximum for a whole (B, T) batch: a loud neighbour would change a patient's answer
            raise ValueError(f"expected (B, 1, T), got {tuple(windows.shape)}")
        mirrored = nn.functional.pad(windows, (self.reach, self.reach), mode="reflect")[:, 0]  # (B, reach + T + reach)
        return self._coefficients(self._decibels(self._frames(mirrored)))[:, None]

    def windows(self, waveform: Tensor, size: int, step: int) -> Tensor:
        """All windows of a recording, (T,) -> (W, 1, frames, n_mfcc): `forward` of `cut`, each sound transformed once.

        Windows that overlap share their frames but for the few at each end, where a window mirrors itself.
        """
        pieces, hop = cut(waveform, size, step), self.hop  # (W, size)
        mirrors = -(-self.reach // hop)  # frames at each end that see the mirror
        border = mirrors * hop + self.reach  # samples that these see
        if size % hop or step % hop or border > size:
            return self(pieces[:, None])
        starts = [number * step for number in range(len(pieces))]
        if len(pieces) > 1:
            starts[-1] = len(waveform) - size  # flush with the end, as `cut` has it
        own = []
        if starts[-1] % hop:  # its frames are nobody else's
            own, pieces, starts = [self(pieces[-1:, None])], pieces[:-1], starts[:-1]
        # Frame i of the recording is centred on sample i * hop; the last one lies behind its end and hears nothing.
        count = -(-(len(waveform) + self.reach) // hop) + 1
        padded = nn.functional.pad(waveform, (self.reach, (count - 1) * hop + self.reach - len(waveform)))
        left = nn.functional.pad(pieces[:, :border], (self.reach, 0), mode="reflect")  # (W, reach + border)
        right = nn.functional.pad(pieces[:, -border:], (0, self.reach), mode="reflect")[:, hop:]
        edges = torch.cat([self._frames(left)[:, :mirrors], self._frames(right)])  # (2 W, mirrors, win_length)
        heard = self._frames(padded[None]), edges.flatten(0, 1)[None]
        decibels = torch.cat([self._decibels(frames)[0] for frames in heard])  # (count + 2 W mirrors, n_mels)
        first_inner = torch.tensor(starts, device=waveform.device)[:, None] // hop + mirrors  # (W, 1)
        inner = first_inner + torch.arange(size // hop + 1 - 2 * mirrors, device=waveform.device)
        first, final = decibels[count:].unflatten(0, (2, len(pieces), mirrors))  # each (W, mirrors, n_mels)
        shared = decibels[inner.clamp(max=count - 1)]  # (W, frames - 2 mirrors, n_mels)
        return torch.cat([self._coefficients(torch.cat([first, shared, final], 1))[:, None], *own])

    def _frames(self, signals: Tensor) -> Tensor:
        """(B, T) -> (B, frames, win_length), a view."""
        return signals.unfold(1, len(self.taper), self.hop)

    def _decibels(self, frames: Tensor) -> Tensor:
        """(B, frames, win_length) -> (B, frames, n_mels), without the floor that depends on a window."""
        if frames.device.type == "cpu":
            parts = [self._energies(part) for each in frames for part in each.split(AT_ONCE)]
            energies = torch.cat(parts).unflatten(0, frames.shape[:2])
        else:
            energies = self._energies(frames)
        return 10 * torch.log10(energies.clamp(min=FLOOR))

    def _energies(self, frames: Tensor) -> Tensor:
        """(..., win_length) -> (..., n_mels)."""
        spectrum = torch.view_as_real(torch.fft.rfft(frames * self.taper, n=self.n_fft))  # (..., bins, 2)
        squares = spectrum.square_().flatten(-2)  # (..., 2 bins)
        return torch.cat([squares[..., bins] @ self.filters[bins, bands] for bins, bands in self.parts], -1)

    def _coefficients(self, decibels: Tensor) -> Tensor:
        """(W, frames, n_mels) -> (W, frames, n_mfcc)."""
        floor = decibels.amax((1, 2), keepdim=True) - RANGE_DB
        return torch.maximum(decibels, floor) @ self.cosines


def _heard(filters: Tensor, first: int, last: int) -> tuple[slice, slice]:
    """The rows of filters (bins, bands) that any of its bands from `first` to before `last` hears, and those bands."""
    rows = filters[:, first:last].any(1).nonzero()[:, 0].tolist() or [0]
    return slice(rows[0], rows[-1] + 1), slice(first, last)


def cut(waveform: Tensor, size: int, step: int) -> Tensor:
    """Overlapping windows of a recording: (T,) -> (W, size), at least one.

    The last full window is kept; a tail that no window covers gets one more window, flush with the end; a recording
    shorter than a window is padded with zeros at its end.

    >>> cut(torch.arange(10.0), size=4, step=3)[:, 0].tolist()
    [0.0, 3.0, 6.0]
    >>> cut(torch.arange(11.0), size=4, step=3)[:, 0].tolist()
    [0.0, 3.0, 6.0, 7.0]
    """
    length = waveform.shape[-1]
    if length <= size:
        return nn.functional.pad(waveform, (0, size - length))[None]  # (1, size)
    windows = waveform.unfold(0, size, step)  # (W, size)
    if (length - size) % step:
        windows = torch.cat([windows, waveform[None, -size:]])  # (W + 1, size)
    return windows
