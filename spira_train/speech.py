"""Voices: the prompt said in Brazilian Portuguese by eSpeak NG, then bent to one speaker in numpy.

What eSpeak NG says depends on all it said before in the same process, so a fixed bank of utterances is made by one
fresh process, in one order (`python -m spira_train.speech`). Variants with a `breath` setting differ even between
fresh processes (measured, 1.52): none is used here.
"""

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np

from spira_train.outcome import BadInput

PROMPT = "O amor ao próximo ajuda a enfrentar o coronavírus com a força que a gente precisa"
RATE = 24000  # Hz, of all arrays that this module returns
VOICES = {
    "F": ("f1", "f4", "belinda", "linda", "steph", "steph2"),
    "M": ("m1", "m2", "m3", "m4", "m7", "Diogo", "pablo", "miguel"),
}
TEMPI = (118, 102)  # words a minute: brisk, slow
PITCHES = (35, 50, 65)  # eSpeak's 0..100
SEMITONES_A_STEP = 0.158  # of that scale, measured between 20 and 80
BLOCK = 4800  # samples; lengths are multiples of it (0.2 s), which keeps their FFT fast
FADE = 0.012  # seconds, around a pause

_LIBRARY_RATE = 22050  # Hz; what eSpeak NG gives
_WORD, _END = 1, 0  # kinds of eSpeak's events
_SPEED, _PITCH = 1, 3  # numbers of its parameters
_UTF8 = 1

Key = tuple[str, int, int]  # voice, words a minute, pitch
Utterance = tuple[np.ndarray, list[int]]  # (samples int16 at 22,050 Hz, first sample of each word)


@cache
def bank() -> dict[Key, Utterance]:
    """The prompt in every voice, tempo and pitch. Raises `BadInput` where eSpeak NG is not installed."""
    done = subprocess.run([sys.executable, "-m", "spira_train.speech"], capture_output=True, check=False)
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["it gave no reason"])[-1]
        raise BadInput(
            f"simulated speech: eSpeak NG cannot be used here ({reason}); "
            "install it with `pip install espeakng-loader==0.2.4`"
        )
    index, _, audio = done.stdout.partition(b"\n")
    samples = np.frombuffer(audio, "<i2")
    utterances, start = {}, 0
    for voice, tempo, pitch, length, words in json.loads(index):
        utterances[voice, tempo, pitch] = samples[start : start + length], words
        start += length
    return utterances


def speak(
    utterance: Utterance,
    speeds: Sequence[float],
    pauses: Sequence[tuple[int, float]],
    edges: tuple[float, float],
    tilt: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Say an utterance as one speaker would.

    speeds: playback speed of each word (2 ** (semitones / 12); moves pitch, formants and tempo together).
    pauses: (word that it precedes, seconds). edges: seconds of silence before and after. tilt: -0.4 dark .. 0.4
    bright. Returns (speech, gaps), both float64 (n,) at 24 kHz: speech has peak 1, gaps is 1 in a pause, 0 in speech.
    """
    samples, words = utterance
    bounds = [0, *words[1:], len(samples)]
    extra = dict(pauses)
    # Knots of a piecewise linear map from time in the result to position in the utterance, which stands in pauses.
    times, positions, opened = [0.0], [0.0], [(0.0, edges[0])]
    now = edges[0]
    for word, speed in enumerate(speeds):
        if word in extra:
            opened.append((now, now + extra[word]))
            now += extra[word]
        times.append(now)
        positions.append(bounds[word])
        now += (bounds[word + 1] - bounds[word]) / speed / _LIBRARY_RATE
        times.append(now)
        positions.append(bounds[word + 1])
    n = -(-int((now + edges[1]) * RATE) // BLOCK) * BLOCK
    opened.append((now, n / RATE))
    at = np.interp(np.arange(n) / RATE, times, positions)  # (n,)
    low = np.minimum(at.astype(np.int64), len(samples) - 2)
    part = at - low
    wave = samples.astype(np.float64)
    wave = wave[low] * (1 - part) + wave[low + 1] * part  # (n,)
    wave[1:] -= tilt * wave[:-1]
    gaps = _gate(opened, n)
    wave *= 1 - gaps
    return wave / max(np.abs(wave).max(), 1e-9), gaps


def key(sex: str, voice: int, slow: bool, semitones: float) -> tuple[Key, float]:
    """The utterance of the bank nearest to a speaker, and the semitones that remain to be bent."""
    levels = [(pitch - 50) * SEMITONES_A_STEP for pitch in PITCHES]
    nearest = int(np.argmin([abs(semitones - level) for level in levels]))
    voices = VOICES[sex]
    return (voices[voice % len(voices)], TEMPI[slow], PITCHES[nearest]), semitones - levels[nearest]


def _gate(opened: Sequence[tuple[float, float]], n: int) -> np.ndarray:
    gate = np.zeros(n)
    fade = int(FADE * RATE)
    for start, end in opened:
        first, last = int(start * RATE), min(int(end * RATE), n)
        edge = min(fade, (last - first) // 2)
        if edge < 1:
            continue
        ramp = np.linspace(0, 1, edge)
        gate[first:last] = 1.0
        gate[first : first + edge] = ramp if first else 1.0
        gate[last - edge : last] = ramp[::-1] if last < n else 1.0
    return gate


class _Event(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int),
        ("unique", ctypes.c_uint),
        ("text", ctypes.c_int),
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    )


def _synthesise() -> bytes:
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    pieces: list[bytes] = []
    words: list[int] = []

    def receive(wave: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_Event]") -> int:
        if wave and count > 0:
            pieces.append(ctypes.string_at(wave, 2 * count))
        at = 0
        while (event := events[at]).kind != _END:
            if event.kind == _WORD:
                words.append(event.sample)
            at += 1
        return 0

    prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
    callback = prototype(receive)
    synchronous = 2
    if library.espeak_Initialize(synchronous, 0, espeakng_loader.get_data_path().encode(), 0) != _LIBRARY_RATE:
        raise SystemExit("eSpeak NG did not start at 22,050 Hz")
    library.espeak_SetSynthCallback(callback)
    text = PROMPT.encode()
    index, audio = [], []
    for voice, tempo, pitch in product((*VOICES["F"], *VOICES["M"]), TEMPI, PITCHES):
        pieces.clear()
        words.clear()
        if library.espeak_SetVoiceByName(f"pt-br+{voice}".encode()):
            raise SystemExit(f"eSpeak NG has no voice pt-br+{voice}")
        library.espeak_SetParameter(_SPEED, tempo, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None)
        sound = b"".join(pieces)
        if len(words) != len(PROMPT.split()):
            raise SystemExit(f"eSpeak NG found {len(words)} words in the prompt")
        index.append((voice, tempo, pitch, len(sound) // 2, list(words)))
        audio.append(sound)
    return json.dumps(index).encode() + b"\n" + b"".join(audio)


if __name__ == "__main__":
    sys.stdout.buffer.write(_synthesise())
