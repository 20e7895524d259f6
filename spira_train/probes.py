"""The gate's questions: what a recording becomes before the model is asked about it again.

Each probe takes one thing away or adds one thing, the same for everybody, so that a change of the answer says what the
model listens to. A model that heard the patient answers on when the ward, the device or the level changes; a model that
heard the ward answers on when the patient falls silent.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from spira_train import channel, noise
from spira_train.audio import SAMPLE_RATE
from spira_train.calibration import log_odds
from spira_train.progress import track
from spira_train.rng import Random

Signal = NDArray[np.float32]
FRAME = SAMPLE_RATE // 50  # 20 ms
GUARD = 3  # frames around speech that count as speech: word ends are soft
# A frame is speech above this part of the way, in dB, from the pauses (10th percentile) to loud speech (95th).
SPEECH = 0.35
VOICES = 2  # of each class, which speak in everybody's room: those with the least room of their own about them
ROOM = 0.25  # seconds of a recording that stand for its room: the quietest ones, as many for those who hardly pause
SPECTRUM = 512  # samples a frame, 32 ms: fine enough for a voice's colour, too coarse for its pitch
AHEAD = 4  # recordings prepared in advance: bounds memory
SNRS = (20, 10, 5, 0)  # dB
SILENCE_PEAK = 1e-4  # -80 dBFS: digital silence with the noise of a converter, so that nothing divides by zero

# What each probe asks, for people: the words of report and model card.
NAMES = {
    "clean": "As recorded",
    "ward_noise": "Ward noise on everyone",
    **{f"ward_noise_{snr}db": f"Ward noise on everyone, {snr} dB" for snr in SNRS},
    "ward_noise_controls": "Ward noise on controls only",
    "ward_noise_patients": "Ward noise on patients only",
    "quiet": "12 dB softer",
    "loud": "6 dB louder, clipped where it must",
    "device": "Another device: 100 to 5000 Hz, tilted",
    "telephone": "Over the telephone",
    "mp3": "Through MP3 at a low rate",
    "opus": "Through Opus, as messengers send it",
    "reversed": "Played backwards",
    "speech_removed": "Speech turned to noise, pauses kept",
    "same_voices": "The same few voices in everyone's room",
    "noise_alone": "Ward noise alone",
    "silence": "Silence alone",
}


@dataclass(frozen=True)
class Questions:
    """What the gate asks.

    law: of the noise that it inserts (`NoiseConfig.insertion`); tracks: noise that training never heard; seed: the
    gate's digest, since a run's own seed would ask each model something else; voices: recordings, each (T,), that are
    put in everybody's room (`voices`).
    """

    law: Mapping[str, Any]
    tracks: Sequence[noise.Signal]
    seed: str
    voices: Sequence[Signal] = ()

    def ward(self, speech: Signal, recording: str) -> Signal:
        """The ward noise that is added to a recording, (T,): it depends on its digest, never on its label."""
        return noise.insert(np.zeros_like(speech), self.tracks, **self.law, rng=self.random.stream("noise", recording))

    def put(self, probe: str, speech: Signal, row: Mapping[str, Any]) -> Signal:
        """What one recording (T,) becomes in one of the two probes that a champion is asked as well."""
        return speech if probe == "clean" else speech + self.ward(speech, row["recording"])

    def variants(self, speech: Signal, row: Mapping[str, Any]) -> dict[str, Signal]:
        """Probe -> what one recording (T,) becomes."""
        recording = row["recording"]
        ward, spoken = self.ward(speech, recording), speaking(speech)  # (T,), (T,)
        dither = self.random.stream("silence", recording).uniform(-SILENCE_PEAK, SILENCE_PEAK, len(speech))
        room, level = quietest(speech), loudness(speech)  # (250 ms,), a number
        visits = [voice * np.float32(level / loudness(voice)) for voice in self.voices]  # (T',) each
        around = self.random.stream("room", recording)
        return {
            "clean": self.put("clean", speech, row),
            "ward_noise": self.put("ward_noise", speech, row),
            **{f"ward_noise_{snr}db": speech + noise.at_snr(speech, ward, snr) for snr in SNRS},
            "quiet": channel.level(speech, -12),
            "loud": channel.level(speech, 6),
            "device": channel.band(speech, 100.0, 5000.0, tilt=-2.0),
            "telephone": channel.telephone(speech),
            "mp3": channel.mp3(speech),
            "opus": channel.opus(speech),
            "reversed": speech[::-1],
            "speech_removed": voiceless(speech, spoken, self.random.stream("voiceless", recording)),
            **{f"voice_{i}": visit + noise.tile(room, len(visit), around) for i, visit in enumerate(visits)},
            "noise_alone": ward,
            "silence": dither.astype(np.float32),
        }

    @property
    def random(self) -> Random:
        """The gate's own root of randomness."""
        return Random(int(self.seed[:8], 16))


def ask(
    predict: Callable[[Mapping[str, Any], Sequence[Signal]], Sequence[float]],
    rows: Sequence[Mapping[str, Any]],
    speech: Callable[[Mapping[str, Any]], Signal],
    questions: Questions,
) -> dict[str, list[float]]:
    """Probe -> a probability for each of `rows`.

    predict: (row, waveforms) -> probabilities. speech: row -> its recording (T,).
    """

    def prepare(row: Mapping[str, Any]) -> dict[str, Signal]:
        return questions.variants(speech(row), row)

    answers: dict[str, list[float]] = {}
    # Codecs leave the interpreter lock: the next recordings are prepared while the model answers about this one.
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[dict[str, Signal]]] = deque()
        for number, row in enumerate(track(rows, "validate", len(rows))):
            waiting.extend(pool.submit(prepare, each) for each in rows[number + len(waiting) : number + AHEAD])
            asked = waiting.popleft().result()
            for name, probability in zip(asked, predict(row, list(asked.values())), strict=True):
                answers.setdefault(name, []).append(probability)
    return answers


def swapped(answers: Mapping[str, Sequence[float]], labels: Sequence[int]) -> dict[str, list[float]]:
    """The two probes with noise on one class only, put together from answers with and without it."""
    pairs = list(zip(answers["clean"], answers["ward_noise"], labels, strict=True))
    return {
        "ward_noise_controls": [clean if label else noisy for clean, noisy, label in pairs],
        "ward_noise_patients": [noisy if label else clean for clean, noisy, label in pairs],
    }


def together(answers: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """`same_voices`: the answers to the voices in one room as one, the mean of their log-odds; none without voices."""
    heard = [log_odds(values) for name, values in answers.items() if name.startswith("voice_")]
    return {"same_voices": expit(np.mean(heard, 0)).tolist()} if heard else {}


def speaking(signal: Signal) -> NDArray[np.bool_]:
    """Where somebody speaks, (T,), by the energy of 20 ms frames between the recording's pauses and its loud speech."""
    frames = signal[: len(signal) // FRAME * FRAME].reshape(-1, FRAME)  # (F, 320)
    if not len(frames):
        return np.ones(len(signal), bool)
    decibels = 10 * np.log10(np.square(frames).mean(1) + 1e-10)  # (F,)
    pause, loud = np.percentile(decibels, [10, 95])
    spoken = decibels > pause + SPEECH * (loud - pause)  # (F,)
    spoken = np.convolve(spoken, np.ones(2 * GUARD + 1), "same") > 0  # (F,)
    return np.pad(np.repeat(spoken, FRAME), (0, len(signal) - len(spoken) * FRAME), mode="edge")  # (T,)


def voiceless(signal: Signal, spoken: NDArray[np.bool_], rng: np.random.Generator) -> Signal:
    """The recording with its speech turned to noise of the same level and long-term spectrum, (T,): no words, no voice.

    What is left is when somebody spoke, and the room. Silence in its place would ask another question: those who pause
    less would have more of it, and how a model reads digital silence is chance (docs/gate.md has the figures).
    """
    voice = signal[spoken]  # (S,)
    level = np.sqrt(np.square(voice).mean()) if len(voice) else 0.0
    sound = rng.standard_normal(len(signal))  # (T,)
    if len(voice) >= SPECTRUM:
        frames = voice[: len(voice) // SPECTRUM * SPECTRUM].reshape(-1, SPECTRUM) * np.hanning(SPECTRUM)  # (F, 512)
        shape = np.sqrt(np.square(np.abs(np.fft.rfft(frames))).mean(0))  # (257,)
        at = np.linspace(0, SPECTRUM // 2, len(signal) // 2 + 1)  # the bin of each frequency
        sound = np.fft.irfft(np.fft.rfft(sound) * np.interp(at, np.arange(len(shape)), shape), len(signal))  # (T,)
    sound *= level / max(np.sqrt(np.square(sound).mean()), 1e-12)
    return np.where(spoken, sound, signal).astype(np.float32)


def quietest(signal: Signal) -> Signal:
    """The quietest stretch of a recording (T,), (250 ms,) or the whole of a shorter one: what is heard of its room.

    Pauses joined would be longer for those who pause, and whoever hears that hears the disease.
    """
    length = min(len(signal), round(ROOM * SAMPLE_RATE))
    energy = np.cumsum(np.concatenate([[0.0], np.square(signal, dtype=np.float64)]))  # (T + 1,)
    start = int(np.argmin(energy[length:] - energy[:-length]))
    return signal[start : start + length]


def loudness(signal: Signal) -> float:
    """Root mean square of the speech in a recording (T,), never 0."""
    voice = signal[speaking(signal)]  # (S,)
    return max(float(np.sqrt(np.square(voice).mean())), SILENCE_PEAK) if len(voice) else SILENCE_PEAK


def voices(rows: Sequence[Mapping[str, Any]], speech: Callable[[Mapping[str, Any]], Signal]) -> list[Signal]:
    """The recordings that speak in everybody's room: of each class those of `rows` with the least noise, each (T,)."""
    clearest = sorted(rows, key=lambda row: (-row["snr_db"], row["recording"]))
    return [speech(row) for label in (0, 1) for row in [one for one in clearest if one["label"] == label][:VOICES]]
