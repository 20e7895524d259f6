"""Ward noise: the tracks of the lake, their split, and SPIRA v1's law of inserting them, label-blind.

v1 wrote its list without a header and read it with one (the first track was lost), chose the number of crops by the
label, and scaled by `max()` instead of the absolute peak. Here the header is optional, no function sees a label, and
a silent crop is drawn again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spira_train import table
from spira_train.audio import SAMPLE_RATE, AudioError, decode_float
from spira_train.outcome import BadInput
from spira_train.split import unit_interval
from spira_train.store import Lake, digest_bytes, digest_json

LIST = "noise/noise_data.csv"
MAX_SECONDS = 600.0
SILENT_PEAK = 1e-3  # -60 dBFS: scaling a fainter crop up would only insert its rounding noise
FADE = SAMPLE_RATE // 20  # 50 ms
OCTAVES = 62.5 * 2.0 ** np.arange(8)  # Hz
_DRAWS = 16

Signal = NDArray[np.float32]


@dataclass(frozen=True)
class Track:
    """One noise track of the lake, not loaded yet."""

    file: str  # relative to lake/noise
    source: str  # the recording that it was cut from
    split: Literal["train", "test"]
    digest: str  # SHA-256 of the file


def catalogue(lake: Lake, *, salt: str, test: float) -> tuple[Track, ...]:
    """The tracks that lake/noise/noise_data.csv lists; test: share of sources kept for the gate.

    All cuts of one source share a split, by a salted digest, unless a column `split` says otherwise.
    Raises `BadInput`.
    """
    try:
        lines = table.read(lake.read(LIST), LIST)
    except FileNotFoundError:
        raise BadInput(f"{LIST}: not found; list the ward noise tracks there, one relative path a line") from None
    header = ["file_path", "source", "split"]
    if lines and "file_path" in (cell.lower() for cell in lines[0][1]):
        header = [cell.lower() for cell in lines.pop(0)[1]]
    if not lines:
        raise BadInput(f"{LIST}: lists no track; add at least two, one relative path a line")
    tracks = tuple(_track(lake, line, cells or {}, salt, test) for line, cells in table.by_column(lines, header))
    split_of = {track.source: track.split for track in tracks} | {track.digest: track.split for track in tracks}
    for track in tracks:
        if {split_of[track.source], split_of[track.digest]} != {track.split}:
            raise BadInput(f"{LIST}: {track.file} or its source is in train and in test; give all its cuts one split")
    return tracks


def noise_digest(tracks: Sequence[Track]) -> str:
    """Digest of a noise set: its bytes and its split."""
    return digest_json(sorted([track.digest, track.split] for track in tracks))


def load(lake: Lake, tracks: Sequence[Track], split: Literal["train", "test"]) -> list[Signal]:
    """The tracks of a split as float32 (T,) at 16 kHz, in the order of their digests.

    Raises `BadInput` where the split has none, or where a track is broken or silent.
    """
    chosen = sorted({track.digest: track for track in tracks if track.split == split}.items())
    if not chosen:
        raise BadInput(
            f"{LIST}: none of its {len(tracks)} tracks falls in the {split} split; "
            "add tracks, or a column `split` with train and test"
        )
    return [_load(lake, track) for _, track in chosen]


def crop(track: Signal, length: int, rng: np.random.Generator) -> Signal:
    """A random crop (length,) of a track (T,), looped with a cross-fade where the track is shorter; never silent.

    Raises ValueError where the whole track is silent.
    """
    for _ in range(_DRAWS):
        piece = tile(track, length, rng)  # (length,)
        if np.abs(piece).max() >= SILENT_PEAK:
            return piece
    # Mostly silence: take the crop around the loudest sample.
    loudest = int(np.abs(track).argmax())
    if abs(track[loudest]) < SILENT_PEAK:
        raise ValueError("the noise track is silent")
    start = max(0, min(loudest - int(rng.integers(length)), len(track) - length))
    piece = track[start : start + length]
    return np.pad(piece, (0, length - len(piece)))  # (length,)


def insert(
    speech: Signal,
    tracks: Sequence[Signal],
    *,
    inserts: int,
    min_peak: float,
    max_peak: float,
    vary: bool = False,
    law: Literal["peak", "snr"] = "peak",
    min_snr_db: float = 0.0,
    max_snr_db: float = 20.0,
    crowd: float = 0.0,
    voices: Sequence[Signal] = (),
    reshape: float = 0.0,
    rng: np.random.Generator,
) -> Signal:
    """Speech (T,) with `inserts` noise crops of its length added (1 to `inserts` where they `vary`).

    A share of `crowd` of the crops are 3 to 6 of the `voices` at once, the others come from `tracks`. A share of
    `reshape` of all passes `reshaped`.

    `peak`: each crop is scaled to a peak of U(min_peak, max_peak). `snr`: all of them together are scaled to a ratio of
    U(min_snr_db, max_snr_db) of the recording's power to theirs. The law is the same whatever the label, in training
    and in testing. The result is not clipped.
    """
    mixed = speech.astype(np.float32, copy=True)  # (T,)
    added = np.zeros_like(mixed)  # (T,)
    for _ in range(int(rng.integers(1, inserts + 1)) if vary and inserts else inserts):
        many = int(rng.integers(3, 7)) if voices and crowd and rng.random() < crowd else 0
        cut = reshaped if reshape and rng.random() < reshape else crop
        if many:
            piece = _crowd(voices, many, len(speech), cut, rng)  # (T,)
        else:
            piece = cut(tracks[int(rng.integers(len(tracks)))], len(speech), rng)  # (T,)
        added += piece * np.float32(rng.uniform(min_peak, max_peak) / np.abs(piece).max())  # (T,)
    if law == "snr" and added.any():
        added = at_snr(mixed, added, float(rng.uniform(min_snr_db, max_snr_db)))  # (T,)
    return mixed + added


def _crowd(
    voices: Sequence[Signal],
    count: int,
    length: int,
    cut: Callable[[Signal, int, np.random.Generator], Signal],
    rng: np.random.Generator,
) -> Signal:
    """So many people talking at once, (length,): crops of `voices`, up to 10 dB apart, half of them blurred."""
    together = np.zeros(length, np.float32)  # (length,)
    for _ in range(count):
        one = cut(voices[int(rng.integers(len(voices)))], length, rng)  # (length,)
        if rng.random() < 0.5:
            one = blurred(one, rng)
        together += one / np.sqrt(np.square(one).mean()) * np.float32(10 ** (rng.uniform(-10, 0) / 20))
    return together


def blurred(voice: Signal, rng: np.random.Generator) -> Signal:
    """A voice (T,) as a far one is heard: noise with its rhythm, in the colour of one of its sounds, without pitch.

    Signs at random leave the envelope alone and make the spectrum flat (Schroeder 1968), as in the ICRA noises of
    audiology (Dreschler et al. 2001); the colour is that of the loudest of a few frames drawn at random.
    """
    frame = min(1024, len(voice))
    starts = rng.integers(0, len(voice) - frame + 1, size=4)
    sound = max((voice[start : start + frame] for start in starts), key=lambda one: float(np.square(one).sum()))
    lines = np.abs(np.fft.rfft(sound * np.hanning(frame), 1024))  # (513,)
    if not lines.any():  # digital silence has no colour
        return voice
    colour = np.convolve(lines, np.hanning(11)[1:-1], mode="same")  # over 140 Hz: formants stay, harmonics mostly go
    size = -(-len(voice) // 4096) * 4096  # a length that the transform likes
    gain = np.interp(np.linspace(0, 512, size // 2 + 1), np.arange(513), colour)
    flat = voice * rng.choice(np.array([-1, 1], np.float32), len(voice))
    return np.fft.irfft(np.fft.rfft(flat, size) * gain, size)[: len(voice)].astype(np.float32)  # (T,)


def reshaped(track: Signal, length: int, rng: np.random.Generator) -> Signal:
    """A crop (length,) of a track (T,) as other noise: at another speed, in other colours, half of them backwards.

    Speed 0.7 to 1.5, so pitch too; each octave from 62.5 Hz to 8 kHz gets -12 to 12 dB, with a smooth way between.
    A few tracks so become many: what a network learns by heart is no single one of them.
    """
    speed = float(np.exp(rng.uniform(np.log(0.7), np.log(1.5))))
    raw = crop(track, int(np.ceil(length * speed)) + 1, rng)
    piece = np.interp(np.arange(length) * speed, np.arange(len(raw)), raw)[:: int(rng.choice((1, -1)))]  # (length,)
    size = -(-length // 4096) * 4096  # a length that the transform likes
    gains = 10 ** (rng.uniform(-12, 12, len(OCTAVES)) / 20)
    gain = np.interp(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), OCTAVES, gains)  # (size / 2 + 1,)
    return np.fft.irfft(np.fft.rfft(piece, size) * gain, size)[:length].astype(np.float32)  # (length,)


def at_snr(speech: Signal, noise: Signal, snr_db: float) -> Signal:
    """noise (T,), not silent, scaled so that speech (T,) has `snr_db` decibels more power."""
    power, wanted = float(np.square(noise).mean()), float(np.square(speech).mean()) / 10 ** (snr_db / 10)
    return noise * np.float32(np.sqrt(wanted / power))  # (T,)


def _track(lake: Lake, line: int, cells: dict[str, str], salt: str, test: float) -> Track:
    file = cells.get("file_path", "").replace("\\", "/")
    if not file or file.startswith("/") or ".." in file.split("/"):
        raise BadInput(f"{LIST}: line {line} holds no path relative to the folder noise")
    try:
        content = lake.read("noise", file)
    except (FileNotFoundError, IsADirectoryError):
        raise BadInput(f"{LIST}: line {line}: noise/{file} not found; add it or remove the line") from None
    source = cells.get("source") or file
    given = cells.get("split", "").lower()
    if given not in {"", "train", "test"}:
        raise BadInput(f"{LIST}: line {line}: split is {given!r}; allowed: train, test, or empty")
    drawn = "test" if unit_interval("noise", salt, source) < test else "train"
    return Track(file, source, "test" if (given or drawn) == "test" else "train", digest_bytes(content))


def _load(lake: Lake, track: Track) -> Signal:
    try:
        signal = decode_float(lake.read("noise", track.file), max_seconds=MAX_SECONDS)  # (T,)
    except AudioError as error:
        raise BadInput(f"noise/{track.file}: {error}; replace it or remove its line from {LIST}") from None
    if np.abs(signal).max() < SILENT_PEAK:
        raise BadInput(f"noise/{track.file}: silent; replace it or remove its line from {LIST}")
    return signal


def tile(track: Signal, length: int, rng: np.random.Generator) -> Signal:
    """A random stretch (length,) of a track (T,), looped with a cross-fade where the track is shorter."""
    if len(track) >= length:
        start = int(rng.integers(len(track) - length + 1))
        return track[start : start + length]  # (length,)
    loop = _loop(track)  # (P,)
    start = int(rng.integers(len(loop)))
    return np.resize(np.roll(loop, -start), length)  # (length,)


def _loop(track: Signal) -> Signal:
    """One period whose end runs on into its start: the tail is faded into the head at equal power."""
    fade = min(FADE, len(track) // 4)
    angle = np.linspace(0, np.pi / 2, fade, dtype=np.float32)
    loop = track[: len(track) - fade].copy()  # (P,)
    loop[:fade] = loop[:fade] * np.sin(angle) + track[len(track) - fade :] * np.cos(angle)
    return loop
