"""What a device and a line do to a recording: level, band, tilt, telephone, MP3, Opus. All at 16 kHz, float32 (T,)."""

import io

import numpy as np
import soundfile
from numpy.typing import NDArray

from spira_train.audio import SAMPLE_RATE

Signal = NDArray[np.float32]
# Half-power points of a telephone line (ITU-T G.712) and mu of its companding (G.711).
TELEPHONE_BAND, MU = (300.0, 3400.0), 255.0


def level(signal: Signal, decibels: float) -> Signal:
    """Louder or softer; what leaves full scale is clipped, as a recorder does."""
    return np.clip(signal * np.float32(10 ** (decibels / 20)), -1, 1)  # (T,)


def band(signal: Signal, low: float, high: float, tilt: float = 0.0) -> Signal:
    """Through a device that keeps `low` to `high` Hz (half-power points) and tilts the spectrum by `tilt` dB an octave.

    The tilt turns around 1 kHz and acts from 100 Hz up.
    """
    frequency = np.fft.rfftfreq(len(signal), 1 / SAMPLE_RATE)  # (T / 2 + 1,)
    gain = 1 / np.sqrt((1 + (low / np.maximum(frequency, 1e-3)) ** 4) * (1 + (frequency / high) ** 12))
    gain *= 10 ** (tilt / 20 * np.log2(np.maximum(frequency, 100.0) / 1000.0))
    return np.fft.irfft(np.fft.rfft(signal) * gain, len(signal)).astype(np.float32)  # (T,)


def telephone(signal: Signal) -> Signal:
    """Over a telephone line: 300 to 3400 Hz, 8 kHz, 8 bits of mu-law."""
    from scipy.signal import resample_poly  # most of a second, which only this function is worth

    narrow = resample_poly(band(signal, *TELEPHONE_BAND), 1, 2)  # (T / 2,)
    narrow = np.clip(narrow, -1, 1)
    curved = np.sign(narrow) * np.log1p(MU * np.abs(narrow)) / np.log1p(MU)
    coarse = np.rint(curved * 127) / 127
    line = np.sign(coarse) * np.expm1(np.abs(coarse) * np.log1p(MU)) / MU
    return resample_poly(line, 2, 1)[: len(signal)].astype(np.float32)  # (T,)


def mp3(signal: Signal) -> Signal:
    """To MP3 and back, at the encoder's usual quality."""
    return _through(signal, "MP3", "MPEG_LAYER_III")


def opus(signal: Signal) -> Signal:
    """To Opus and back, as messengers send a voice."""
    return _through(signal, "OGG", "OPUS")


def any_device(signal: Signal, rng: np.random.Generator) -> Signal:
    """Through a device drawn by `rng`: -12 to 6 dB, from 50..300 Hz to 3.4..8 kHz, tilted by up to 3 dB an octave."""
    low, high = np.exp(rng.uniform(np.log([50.0, 3400.0]), np.log([300.0, 8000.0])))
    return level(band(signal, float(low), float(high), float(rng.uniform(-3, 3))), float(rng.uniform(-12, 6)))  # (T,)


def _through(signal: Signal, container: str, codec: str) -> Signal:
    stream = io.BytesIO()
    # libsndfile's middle of the road takes twice as long for Opus, which sends a voice well at this setting
    soundfile.write(stream, np.clip(signal, -1, 1), SAMPLE_RATE, format=container, subtype=codec, compression_level=0.9)
    stream.seek(0)
    decoded, _ = soundfile.read(stream, dtype="float32")
    return np.pad(decoded, (0, max(0, len(signal) - len(decoded))))[: len(signal)]  # (T,)
