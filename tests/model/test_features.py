"""The features are SPIRA v1's, and one recording's features never depend on its neighbours."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchaudio.transforms import MFCC

from spira_train.config import FeaturesConfig
from spira_train.features import FeatureExtractor, cut


def test_four_seconds_give_401_frames_of_40():
    assert FeatureExtractor()(torch.zeros(2, 1, 64_000)).shape == (2, 1, 401, 40)


def test_batch_without_channel_axis_is_refused():
    with pytest.raises(ValueError, match=r"expected \(B, 1, T\)"):
        FeatureExtractor()(torch.zeros(2, 64_000))


def test_loud_neighbour_changes_nothing():
    torch.manual_seed(0)
    quiet, loud = torch.randn(1, 1, 64_000) * 1e-3, torch.randn(1, 1, 64_000) * 50
    extractor = FeatureExtractor()
    alone = extractor(quiet)[0]
    beside = extractor(torch.cat([loud, quiet, torch.zeros(1, 1, 64_000)]))[1]
    assert torch.allclose(alone, beside, atol=1e-4)


@pytest.mark.parametrize(("n_fft", "win_length", "hop_length"), [(1200, 400, 160), (1024, 1024, 320), (1202, 398, 161)])
def test_they_are_torchaudios(n_fft, win_length, hop_length):
    torch.manual_seed(1)
    wave = torch.randn(2, 1, 64_000) * torch.linspace(1e-4, 0.5, 64_000)
    settings = {"n_fft": n_fft, "win_length": win_length, "hop_length": hop_length}
    theirs = MFCC(16_000, 40, log_mels=False, melkwargs=settings | {"n_mels": 40})
    for window, found in zip(wave, FeatureExtractor(**settings)(wave), strict=True):
        assert torch.allclose(found, theirs(window).transpose(1, 2), atol=1e-3)  # of some 300


@pytest.mark.parametrize("odd", [{"win_length": 399}, {"n_fft": 1201}])
def test_frames_without_a_middle_are_refused(odd):
    with pytest.raises(ValueError, match="must be even"):
        FeatureExtractor(**odd)
    with pytest.raises(ValueError, match="must be even"):
        FeaturesConfig(**odd)


@pytest.mark.parametrize(("size", "step"), [(64_000, 16_000), (128_000, 32_000), (64_000, 64_000), (64_100, 16_000)])
@pytest.mark.parametrize("length", [1, 300, 63_999, 64_000, 64_160, 96_160, 100_001, 160_000])
def test_frames_that_windows_share_are_what_each_window_has_alone(length, size, step):
    torch.manual_seed(length)
    wave, extractor = torch.randn(length) * torch.linspace(1e-4, 0.5, length), FeatureExtractor()
    alone = extractor(cut(wave, size, step)[:, None])
    assert torch.allclose(extractor.windows(wave, size, step), alone, atol=1e-3)


def test_a_recording_of_several_windows_is_transformed_once(monkeypatch):
    counted, rfft = [], torch.fft.rfft
    monkeypatch.setattr(
        torch.fft, "rfft", lambda frames, n: counted.append(frames[..., 0].numel()) or rfft(frames, n=n)
    )
    FeatureExtractor().windows(torch.randn(160_000), 64_000, 16_000)
    assert sum(counted) < 1001 + 7 * 4 + 10  # not 7 times 401


def test_mfcc_against_a_plain_computation():
    """The definition, written out: STFT, power, HTK mel triangles, decibels with an 80 dB floor, orthonormal DCT."""
    rng = np.random.default_rng(0)
    wave = rng.normal(size=64_000).astype(np.float32) * np.linspace(0.001, 0.5, 64_000, dtype=np.float32)
    padded = np.pad(wave.astype(np.float64), 600, mode="reflect")
    window = np.zeros(1200)
    window[400:800] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([padded[i * 160 : i * 160 + 1200] * window for i in range(401)])
    power = np.abs(np.fft.rfft(frames)) ** 2  # (401, 601)
    mel = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 42)
    edges = 700 * (10 ** (mel / 2595) - 1)
    bins = np.linspace(0, 8000, 601)[:, None]
    rising = (bins - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - bins) / np.diff(edges)[1:]
    decibels = 10 * np.log10(np.maximum(power @ np.maximum(0, np.minimum(rising, falling)), 1e-10))  # (401, 40)
    decibels = np.maximum(decibels, decibels.max() - 80)
    n, k = np.arange(40)[:, None], np.arange(40)[None]
    dct = np.cos(np.pi / 40 * (n + 0.5) * k) * np.sqrt(2 / 40)
    dct[:, 0] = np.sqrt(1 / 40)
    ours = FeatureExtractor()(torch.from_numpy(wave)[None, None])[0, 0].numpy()
    assert np.abs(ours - decibels @ dct).max() < 0.02


@given(st.integers(0, 400), st.integers(1, 60), st.integers(1, 60))
def test_windows_cover_every_sample_and_nothing_else(length, size, step):
    wave = torch.arange(1.0, length + 1)
    windows = cut(wave, size, step)
    assert windows.shape[1] == size
    covered = set(windows.flatten().tolist())
    if step <= size:
        assert set(wave.tolist()) <= covered
    assert covered <= set(wave.tolist()) | {0.0}
    assert len(windows) == len({tuple(w.tolist()) for w in windows})


def test_recording_of_exactly_one_window_gives_one_window():
    assert cut(torch.ones(64_000), 64_000, 16_000).shape == (1, 64_000)


def test_last_full_window_is_kept():
    assert cut(torch.ones(80_000), 64_000, 16_000).shape == (2, 64_000)
