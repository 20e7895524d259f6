"""A first look at a recording: whether anybody could learn from it. extract judges it fully, and much later."""

import io
from dataclasses import dataclass

import numpy as np
import soundfile

MIN_SECONDS, MAX_SECONDS = 0.5, 120.0  # extract's own limits, as its defaults are
SILENCE_DBFS = -60.0
_KINDS = {"WAV": "wav", "WAVEX": "wav", "RF64": "wav", "FLAC": "flac", "OGG": "ogg", "MP3": "mp3", "MPEG": "mp3"}
# libsndfile guesses among 25 formats: only the parsers of these ever see what is sent.
_MAGIC = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xfa", b"\xff\xe3")


class Unusable(ValueError):
    """`reason`: a word of extract's; `detail`: a sentence that names no file."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Heard:
    """What the first look found."""

    extension: str  # wav, flac, ogg, mp3
    seconds: float


def listen(content: bytes) -> Heard:
    """Open a recording, second by second, so that no header's promise takes memory. Raises `Unusable`."""
    if not content.startswith(_MAGIC):
        raise Unusable("undecodable", "not a WAV, FLAC, OGG or MP3 file" if content else "the file is empty")
    frames, power = 0, 0.0
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate, kind = file.samplerate, _KINDS.get(file.format)
            if kind is None or not 8_000 <= rate <= 192_000 or not 1 <= file.channels <= 2:
                raise Unusable("unsupported", "WAV, FLAC, OGG or MP3 of 8 to 192 kHz and one or two channels are heard")
            while len(block := file.read(rate, dtype="float32", always_2d=True)):
                frames += len(block)
                if not np.isfinite(block).all():
                    raise Unusable("not_finite", "samples that are not numbers (NaN or infinity)")
                power = max(power, float(block.var(axis=0, dtype=np.float64).max()))
                if frames > MAX_SECONDS * rate:
                    raise Unusable("too_long", f"more than {MAX_SECONDS:g} s")
    except (soundfile.SoundFileError, RuntimeError, EOFError):
        raise Unusable("undecodable", "broken: no audio could be read from it") from None
    if frames < MIN_SECONDS * rate:
        raise Unusable("too_short", f"{frames / rate:.2f} s; at least {MIN_SECONDS:g} s are needed")
    if power < 10 ** (SILENCE_DBFS / 10):
        raise Unusable("silent", f"not a second of it is louder than {SILENCE_DBFS:g} dBFS; is the microphone on?")
    return Heard(kind, frames / rate)
