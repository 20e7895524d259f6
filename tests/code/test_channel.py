"""Devices and lines: bands are kept where they should be, length and alignment too, and nothing is left to chance."""

from collections.abc import Callable

import numpy as np
import pytest

from spira_train import channel

SHAPES = {
    "level": lambda s: channel.level(s, -6),
    "band": lambda s: channel.band(s, 100, 5000, tilt=-2),
    "telephone": channel.telephone,
    "mp3": channel.mp3,
    "opus": channel.opus,
    "any_device": lambda s: channel.any_device(s, np.random.default_rng(3)),
}


def tone(hertz: float, length: int = 16000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(length) / 16000)).astype(np.float32)


def babble(length: int = 32000, seed: int = 0) -> np.ndarray:
    """Noise of the voice band that swells and dies, so that a shift in time shows."""
    rng = np.random.default_rng(seed)
    swell = np.interp(np.arange(length), np.arange(0, length + 1600, 1600), rng.random(length // 1600 + 1))
    return (0.2 * swell * channel.band(rng.standard_normal(length).astype(np.float32), 200, 3000)).astype(np.float32)


def gain(shape: Callable[[np.ndarray], np.ndarray], hertz: float) -> float:
    """Decibels by which a tone is louder after `shape`, away from its ends."""
    before, after = tone(hertz)[2000:-2000], shape(tone(hertz))[2000:-2000]
    return float(20 * np.log10(np.sqrt(np.mean(after**2)) / np.sqrt(np.mean(before**2)) + 1e-9))


def test_level_is_in_decibels_and_clips_at_full_scale() -> None:
    assert gain(lambda s: channel.level(s, -12), 440) == pytest.approx(-12, abs=0.01)
    assert channel.level(tone(440), 40).max() == 1
    assert channel.level(tone(440), 40).min() == -1


def test_a_band_has_its_half_power_points_and_turns_around_1_khz() -> None:
    def narrow(signal: np.ndarray) -> np.ndarray:
        return channel.band(signal, 300, 3400)

    assert [gain(narrow, hertz) for hertz in (300, 3400)] == pytest.approx([-3, -3], abs=0.2)
    assert gain(narrow, 1000) == pytest.approx(0, abs=0.1)
    assert gain(narrow, 75) < -20
    assert gain(narrow, 6800) < -30
    tilted = [gain(lambda s: channel.band(s, 10, 1e5, tilt=-3), hertz) for hertz in (500, 1000, 2000, 4000)]
    assert tilted == pytest.approx([3, 0, -3, -6], abs=0.1)


def test_a_telephone_keeps_nothing_above_its_band() -> None:
    noise = (0.1 * np.random.default_rng(0).standard_normal(64000)).astype(np.float32)
    power = np.abs(np.fft.rfft(channel.telephone(noise))) ** 2
    frequency = np.fft.rfftfreq(64000, 1 / 16000)
    inside, above = power[(frequency > 500) & (frequency < 3000)].mean(), power[frequency > 4200].mean()
    assert 10 * np.log10(above / inside) < -30
    assert 10 * np.log10(power[frequency < 100].mean() / inside) < -15
    assert gain(channel.telephone, 1000) == pytest.approx(0, abs=0.5)
    assert gain(channel.telephone, 5000) < -30


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("length", [1600, 15999, 32000])
def test_length_kind_and_repetition(name: str, length: int) -> None:
    signal = babble(32000)[:length]
    before = signal.copy()
    heard = SHAPES[name](signal)
    assert heard.shape == signal.shape
    assert heard.dtype == np.float32
    assert np.isfinite(heard).all()
    assert np.array_equal(heard, SHAPES[name](signal))
    assert np.array_equal(signal, before)


@pytest.mark.parametrize("name", SHAPES)
def test_speech_stays_where_it_was_in_time(name: str) -> None:
    """The envelope of 5 ms blocks fits best with no shift: a decoder's delay would move every pause."""
    signal = babble()
    heard = SHAPES[name](signal)
    loud = [np.sqrt(np.square(s.reshape(-1, 80)).mean(1)) for s in (signal, heard)]  # (F,) each
    fits = {shift: np.corrcoef(loud[0][20:-20], np.roll(loud[1], shift)[20:-20])[0, 1] for shift in range(-12, 13)}
    assert max(fits, key=lambda shift: fits[shift]) == 0
    assert fits[0] > 0.9


def test_silence_passes_every_device() -> None:
    for name, shape in SHAPES.items():
        assert np.abs(shape(np.zeros(8000, np.float32))).max() < 1e-3, name


def test_a_device_is_drawn_from_its_stream_and_varies() -> None:
    signal = babble()
    heard = [channel.any_device(signal, np.random.default_rng(seed)) for seed in range(20)]
    levels = [20 * np.log10(np.sqrt(np.mean(h**2)) / np.sqrt(np.mean(signal**2))) for h in heard]
    assert np.std(levels) > 2
    assert max(levels) < 12
