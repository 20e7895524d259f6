"""`Audio`: one recording in its canonical form, 16 kHz mono int16, with the facts measured on the way.

The extract step and the TorchServe handler decode through this one function, so training and serving hear the same
bits. It therefore stands alone: numpy, soundfile, torch and torchaudio, nothing else.
"""

import hashlib
import io
import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torchaudio.transforms import Resample

SAMPLE_RATE = 16_000  # Hz, SPIRA v1
MIN_RATE, MAX_RATE = 8_000, 192_000  # Hz, telephone to studio
MAX_CHANNELS = 2
REASONS = ("undecodable", "unsupported", "not_finite", "too_short", "too_long", "silent", "clipped")

FLOOR_DBFS = -120.0  # what digital silence reports: its true level, minus infinity, is not a JSON number
FLOOR_SNR_DB = -20.0  # what a sound without pauses reports: steady speech and steady noise look alike
BANDWIDTH_DB = -50.0  # a band counts as present above this, relative to the strongest

# libsndfile guesses among 25 formats; only the parsers of these ever see bytes from outside.
_MAGIC = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xfa", b"\xff\xe3")
# Highest value that a sample can have, where that is clearly below 1.
_FULL_SCALE = {"PCM_U8": 127 / 128, "PCM_S8": 127 / 128, "ULAW": 32124 / 32768, "ALAW": 32256 / 32768}
_FFT = 1024
_HANN = torch.from_numpy(np.hanning(_FFT).astype(np.float32))
_SNR_FRAME = 400  # samples, 25 ms: the usual frame of speech analysis, and of the features
_ROUNDING = 1 / 12  # power of the rounding to 16 bits, in squared steps: what digital silence counts as
_BLOCK = 500_000  # numbers multiplied at once: bounds memory, and stays in the cache
_STREAMED = 2**31 - 1024  # bytes
_MAX_KERNEL = 4_000_000  # an odd rate such as 44,099 Hz needs a resampling kernel of gigabytes


Samples = NDArray[np.float32 | np.int16]  # as decoded: 16-bit sound stays as it is


class AudioError(ValueError):
    """A recording is refused. `reason` is one of REASONS, `detail` says why in words and names no file."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, eq=False)
class Audio:
    """A recording as the model hears it."""

    samples: NDArray[np.int16] = field(repr=False)  # (T,) at 16 kHz
    seconds: float
    rms_dbfs: float  # about the mean: a constant offset is not loudness
    snr_db: float  # estimated: power of the loud frames to that of the pauses
    peak: float  # 0..1
    clipped: float  # fraction of the source's samples at full scale
    source_rate: int  # Hz
    source_channels: int
    bandwidth_hz: float  # highest frequency within 50 dB of the strongest

    @property
    def digest(self) -> str:
        """The recording's identity, see `digest`."""
        return digest(self.samples)


@dataclass(frozen=True, eq=False)
class _Source:
    """The loudest channel of a file, as decoded."""

    samples: Samples  # (S,) at `rate`
    rate: int
    channels: int
    full_scale: float


def decode(content: bytes, *, min_seconds: float, max_seconds: float, silence_dbfs: float, max_clipped: float) -> Audio:
    """Decode the bytes of a WAV, FLAC, OGG or MP3 file.

    Of several channels the loudest is taken: averaging would mix a second voice in. Limits are those of
    `ExtractConfig`. Raises `AudioError` for whatever is not a usable recording.

    >>> tone = np.sin(np.arange(16000) * 0.1).astype(np.float32) / 2
    >>> limits = dict(min_seconds=0.5, max_seconds=120, silence_dbfs=-60, max_clipped=0.02)
    >>> decode(to_flac((tone * 32767).astype(np.int16)), **limits).samples.shape
    (16000,)
    """
    source = _read(content, max_seconds)
    seconds = len(source.samples) / source.rate
    if seconds < min_seconds:
        raise AudioError("too_short", f"{seconds:.2f} s; at least {min_seconds:g} s are needed")
    clipped = _clipped(source) / len(source.samples)
    if clipped > max_clipped:
        raise AudioError("clipped", f"{clipped:.1%} of the samples at full scale; at most {max_clipped:.1%} may be")
    samples = _canonical(source)  # (T,)
    powers, mean = _powers(samples)
    level = max(FLOOR_DBFS, 20 * math.log10(math.sqrt(mean) / 32768)) if mean else FLOOR_DBFS
    if level < silence_dbfs:
        raise AudioError("silent", f"{level:.0f} dBFS; at least {silence_dbfs:g} dBFS are needed")
    return Audio(
        samples=samples,
        seconds=len(samples) / SAMPLE_RATE,
        rms_dbfs=level,
        snr_db=_snr(powers),
        peak=max(int(samples.max()), -int(samples.min())) / 32768,
        clipped=clipped,
        source_rate=source.rate,
        source_channels=source.channels,
        bandwidth_hz=min(_bandwidth(samples), source.rate / 2),
    )


def decode_float(content: bytes, *, max_seconds: float) -> NDArray[np.float32]:
    """Decode to float32 (T,) at 16 kHz without judging level or length: for noise tracks, which may be faint."""
    return _to_16k(_read(content, max_seconds)).astype(np.float32)  # (T,)


def as_float(audio: Audio | Samples) -> NDArray[np.float32]:
    """Samples as float32 (T,) in [-1, 1); those that are already are taken as they are."""
    samples = audio.samples if isinstance(audio, Audio) else audio
    if samples.dtype == np.float32:
        return samples.astype(np.float32, copy=False)
    return samples.astype(np.float32) / np.float32(32768)  # (T,)


def digest(samples: NDArray[np.int16]) -> str:
    """SHA-256 of canonical samples as little-endian bytes, in hex: the recording's identity."""
    return hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()


def to_flac(samples: NDArray[np.int16]) -> bytes:
    """Canonical samples as a FLAC file, without loss."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def from_flac(content: bytes) -> NDArray[np.int16]:
    """The canonical samples (T,) of a file in the lake's audio area."""
    samples, rate = soundfile.read(io.BytesIO(content), dtype="int16")  # (T,)
    if rate != SAMPLE_RATE or samples.ndim != 1:
        raise AudioError("unsupported", f"{rate} Hz, {samples.ndim} dimensions; 16 kHz mono is expected here")
    return samples


def _read(content: bytes, max_seconds: float) -> _Source:
    if not content.startswith(_MAGIC):
        raise AudioError("undecodable", "not a WAV, FLAC, OGG or MP3 file" if content else "the file is empty")
    missing = _missing_bytes(content)
    if missing:
        raise AudioError("undecodable", f"cut off: {missing} bytes of sound are missing at its end")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate, channels, subtype = file.samplerate, file.channels, file.subtype
            _check_header(rate, channels)
            limit = int(max_seconds * rate)
            samples = _read_frames(file, limit)  # (S, C)
    except (soundfile.SoundFileError, RuntimeError, EOFError):
        raise AudioError("undecodable", "broken: no audio could be read from it") from None
    if len(samples) == 0:
        raise AudioError("undecodable", "the file holds no samples")
    if len(samples) > limit:
        raise AudioError("too_long", f"more than {max_seconds:g} s")
    if samples.dtype != np.int16 and not np.isfinite(samples).all():
        raise AudioError("not_finite", "samples that are not numbers (NaN or infinity)")
    loudest = int(np.argmax(samples.std(axis=0, dtype=np.float64))) if channels > 1 else 0
    return _Source(np.ascontiguousarray(samples[:, loudest]), rate, channels, _FULL_SCALE.get(subtype, 0.999))


def _missing_bytes(content: bytes) -> int:
    """How many bytes a WAV file's data chunk promises beyond the end of the file: what an upload cut off lost."""
    at = 12
    while content.startswith(b"RIFF") and at + 8 <= len(content):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        if content[at : at + 4] == b"data":
            # Recorders that stream cannot know the size, and promise the largest there is.
            return 0 if size > _STREAMED else max(0, at + 8 + size - len(content))
        at += 8 + size + size % 2
    return 0


def _check_header(rate: int, channels: int) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError("unsupported", f"{rate} Hz; {MIN_RATE} to {MAX_RATE} Hz are supported")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError("unsupported", f"{channels} channels; 1 or {MAX_CHANNELS} are supported")
    if rate * SAMPLE_RATE // math.gcd(rate, SAMPLE_RATE) ** 2 > _MAX_KERNEL:
        raise AudioError("unsupported", f"{rate} Hz is no usual sampling rate")


def _read_frames(file: soundfile.SoundFile, limit: int) -> Samples:
    """At most limit + 1 frames: neither a header that lies nor a decompression bomb can take more memory."""
    kind = "int16" if file.subtype == "PCM_16" else "float32"
    # second by second: the last bit of an MP3's samples depends on it, and so would a recording's identity
    step = limit + 1 if kind == "int16" else file.samplerate
    blocks = [np.empty((0, file.channels), kind)]
    missing = limit + 1
    # A stream of unknown length claims the largest number there is; only then reading has to find out.
    if limit < file.frames < 2**62:
        missing = 0
        blocks.append(np.zeros((limit + 1, file.channels), kind))
    while missing:
        block = file.read(min(missing, step), dtype=kind, always_2d=True)  # (n, C)
        if not len(block):
            break
        blocks.append(block)
        missing -= len(block)
    return blocks[1] if len(blocks) == 2 else np.concatenate(blocks)  # (S, C)


def _clipped(source: _Source) -> int:
    """How many samples are at full scale."""
    if source.samples.dtype != np.int16:
        return int(np.count_nonzero(np.abs(source.samples) >= source.full_scale))
    full = math.ceil(source.full_scale * 32768)
    return int(np.count_nonzero(source.samples >= full) + np.count_nonzero(source.samples <= -full))


def _canonical(source: _Source) -> NDArray[np.int16]:
    """int16 (T,) at 16 kHz; what is already that is taken as it is."""
    if source.rate == SAMPLE_RATE and source.samples.dtype == np.int16:
        return source.samples.astype(np.int16, copy=False)
    return np.clip(np.rint(_to_16k(source) * 32768), -32768, 32767).astype(np.int16)  # (T,)


def _to_16k(source: _Source) -> NDArray[np.floating]:
    """Resample as torchaudio does, but by matrix products in float64, 4 times as fast as its float64 convolution.

    In float64 the order of sums (threads, vector width, library) never reaches the 16th bit.
    """
    sound = as_float(source.samples)
    if source.rate == SAMPLE_RATE:
        return sound  # (T,)
    filters, width = _filters(source.rate)  # (K, new)
    reach, new = filters.shape
    old = source.rate * new // SAMPLE_RATE  # `old` samples of the source become `new` ones
    padded = torch.from_numpy(np.pad(sound, (width, width + old)))
    count = (len(padded) - reach) // old + 1
    rows = max(1, _BLOCK // reach)
    blocks = []
    for start in range(0, count, rows):
        part = padded[start * old : (start + rows - 1) * old + reach].double()
        blocks.append(part.unfold(0, reach, old) @ filters)  # (rows, new)
    return torch.cat(blocks).flatten()[: -(-len(sound) * new // old)].numpy()  # (T,)


@lru_cache(maxsize=16)
def _filters(rate: int) -> tuple[torch.Tensor, int]:
    """torchaudio's windowed sinc from `rate` to 16 kHz: a filter for each phase (K, new), and its reach to the left."""
    resample = Resample(rate, SAMPLE_RATE, dtype=torch.float64)
    return resample.kernel[:, 0].T.contiguous(), resample.width


def _powers(samples: NDArray[np.int16]) -> tuple[NDArray[np.float64], float]:
    """(powers of frames of 25 ms (N,), at least one; power of the whole), about the mean, in squared steps."""
    centred = samples - samples.mean(dtype=np.float64)  # (T,)
    whole = len(centred) // _SNR_FRAME
    frames = centred[: whole * _SNR_FRAME].reshape(whole, _SNR_FRAME) if whole else centred[None]  # (N, 400)
    energies = np.einsum("nt,nt->n", frames, frames)  # (N,); not BLAS: its threads would wake on every core
    rest = centred[frames.size :]
    return energies / frames.shape[1], float(energies.sum() + np.einsum("t,t->", rest, rest)) / len(centred)


def _snr(powers: NDArray[np.float64]) -> float:
    """Ratio of speech to noise, from the powers of frames (N,): no transcript, no training.

    Noise is the 10th percentile, the level in the pauses (Martin 2001 follows such minima); not the lowest frame, which
    chance decides. Loud is the 85th percentile: voiced sound, whatever the share of pauses; not the highest, a click.
    Speech is what loud has beyond the noise. On simulated speech that is 3 to 4 dB above the ratio of mean powers.
    """
    low, loud = np.interp([0.1, 0.85], np.linspace(0, 1, len(powers)), np.sort(powers))
    noise = max(float(low), _ROUNDING)
    return max(FLOOR_SNR_DB, 10 * math.log10(max(float(loud) - noise, 1e-9) / noise))


def _bandwidth(samples: NDArray[np.int16]) -> float:
    frames = torch.from_numpy(np.pad(samples, (0, -len(samples) % _FFT)).astype(np.float32)).view(-1, _FFT)
    spectrum = torch.view_as_real(torch.fft.rfft(frames * _HANN))  # (N, 513, 2)
    power = spectrum.square_().mean(0).sum(1).numpy()  # (513,)
    present = np.flatnonzero(power > power.max() * 10 ** (BANDWIDTH_DB / 10))
    return float(present[-1]) * SAMPLE_RATE / _FFT if len(present) else 0.0
