"""Noise of a hospital ward, and of a quiet room at home, from families of simple generators."""

from collections.abc import Callable

import numpy as np

from spira_train.rng import Random

Generator = np.random.Generator
Shape = Callable[[np.ndarray], np.ndarray]


def ward(random: Random, index: int, seconds: float, rate: int) -> tuple[str, np.ndarray]:
    """The `index`-th ward track: (its main family, float64 (n,) with highest sample 1)."""
    rng = random.stream("ward", index)
    n = int(seconds * rate)
    main = list(FAMILIES)[index % len(FAMILIES)]
    others = rng.choice([name for name in FAMILIES if name != main], size=2, replace=False)
    track = _level(FAMILIES[main](rng, n, rate)) + 0.3 * _level(_air(rng, n, rate))
    for name in others:
        track = track + rng.uniform(0.1, 0.5) * _level(FAMILIES[str(name)](rng, n, rate))
    return main, track / track.max()


def home(random: Random, index: int, seconds: float, rate: int) -> np.ndarray:
    """The `index`-th quiet room: float64 (n,) with highest sample 1."""
    rng = random.stream("home", index)
    n = int(seconds * rate)
    room = _level(_air(rng, n, rate))
    hum = rng.uniform(0, 0.5) * np.sin(2 * np.pi * 60 * np.arange(n) / rate)  # the mains in Brazil
    track = room + hum + rng.uniform(0, 0.2) * _level(_coloured(rng, n, rate, np.ones_like))
    return track / track.max()


def breath(random: Random, seconds: float, rate: int) -> np.ndarray:
    """Breath noise: float64 (n,) with highest sample 1."""
    wave = _coloured(random.stream("breath"), int(seconds * rate), rate, lambda f: _bump(f, 1200, 1200))
    return wave / wave.max()


def _ventilator(rng: Generator, n: int, rate: int) -> np.ndarray:
    time = np.arange(n) / rate
    motor = rng.uniform(45, 65)
    hum = sum(rng.uniform(0.2, 1) / k * np.sin(2 * np.pi * motor * k * time + rng.uniform(0, 6)) for k in range(1, 6))
    breathing = rng.uniform(12, 22) / 60  # breaths a second
    valve = np.clip(np.sin(2 * np.pi * breathing * time + rng.uniform(0, 6)), 0, 1) ** 0.5
    hiss = _level(_coloured(rng, n, rate, lambda f: f / (f + 400) / (1 + (f / 2500) ** 2)))
    return 0.5 * hum + (0.3 + 1.5 * valve) * hiss


def _monitor(rng: Generator, n: int, rate: int) -> np.ndarray:
    beep = _tone(rng.uniform(550, 1100), rng.uniform(0.08, 0.2), rate)
    every = int(rate * 60 / rng.uniform(60, 110))
    track = np.zeros(n)
    for start in range(int(rng.integers(every)), n - len(beep), every):
        late = start + int(rng.integers(-every // 40, every // 40 + 1))
        if 0 <= late <= n - len(beep):
            track[late : late + len(beep)] += beep
    alarm = np.concatenate([_tone(pitch, 0.18, rate) for pitch in (960, 770, 960)])
    for start in rng.integers(0, max(n - len(alarm), 1), size=int(n / rate / 20)):
        track[start : start + len(alarm)] += alarm[: n - start]
    return track


def _air(rng: Generator, n: int, rate: int) -> np.ndarray:
    corner, slope = rng.uniform(150, 500), rng.uniform(1.0, 1.8)
    return _coloured(rng, n, rate, lambda f: 1 / (1 + (f / corner) ** slope))


def _babble(rng: Generator, n: int, rate: int) -> np.ndarray:
    track = np.zeros(n)
    for _ in range(int(rng.integers(3, 7))):
        formants = (rng.uniform(300, 700), rng.uniform(1100, 2000), rng.uniform(2300, 2900))
        voice = _level(_coloured(rng, n, rate, _vowel(formants)))
        knots = np.arange(0, n + rate, rate / rng.uniform(3.5, 6.0))  # syllables
        loud = rng.random(len(knots)) ** 2 * (rng.random(len(knots)) < 0.8)
        track += rng.uniform(0.3, 1) * voice * np.interp(np.arange(n), knots, loud)
    return track


def _trolley(rng: Generator, n: int, rate: int) -> np.ndarray:
    rumble = _level(_coloured(rng, n, rate, lambda f: _bump(f, 90, 60)))
    impulses = np.zeros(n)
    impulses[rng.integers(0, n, size=n * 12 // rate)] = 1.0
    ring = rng.uniform(1500, 3500)
    rattle = _level(_shaped(impulses, rate, lambda f: _bump(f, ring, 900)))
    centre, width = rng.uniform(0.2, 0.8) * n, rng.uniform(3, 8) * rate
    passing = 0.15 + np.exp(-(((np.arange(n) - centre) / width) ** 2))
    return passing * (rumble + rattle)


def _pump(rng: Generator, n: int, rate: int) -> np.ndarray:
    beat = np.sin(2 * np.pi * rng.uniform(1.0, 2.5) * np.arange(n) / rate) > rng.uniform(0.2, 0.7)
    centre = rng.uniform(400, 1200)
    return (0.1 + beat) * _coloured(rng, n, rate, lambda f: _bump(f, centre, 300))


def _footsteps(rng: Generator, n: int, rate: int) -> np.ndarray:
    impulses = np.zeros(n)
    gaps = rng.normal(0.55, 0.05, size=n // rate * 2) * rate
    steps = np.cumsum(gaps).astype(np.int64)
    impulses[steps[(steps >= 0) & (steps < n)]] = 1.0
    thud = rng.uniform(150, 350)
    return _shaped(impulses, rate, lambda f: _bump(f, thud, 150))


FAMILIES: dict[str, Callable[[Generator, int, int], np.ndarray]] = {
    "ventilator": _ventilator,
    "monitor": _monitor,
    "air-conditioning": _air,
    "babble": _babble,
    "trolley": _trolley,
    "pump": _pump,
    "footsteps": _footsteps,
}


def _coloured(rng: Generator, n: int, rate: int, shape: Shape) -> np.ndarray:
    spectrum = rng.standard_normal((n // 2 + 1, 2)).view(np.complex128)[:, 0]  # white noise needs no transform
    return np.fft.irfft(spectrum * shape(np.fft.rfftfreq(n, 1 / rate)), n)


def _shaped(wave: np.ndarray, rate: int, shape: Shape) -> np.ndarray:
    frequencies = np.fft.rfftfreq(len(wave), 1 / rate)
    return np.fft.irfft(np.fft.rfft(wave) * shape(frequencies), len(wave))


def _bump(frequency: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-(((frequency - centre) / width) ** 2))


def _vowel(formants: tuple[float, ...]) -> Shape:
    return lambda f: np.sum([_bump(f, at, 120) / at for at in formants], axis=0)


def _tone(frequency: float, seconds: float, rate: int) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    fade = np.minimum(1, np.minimum(time, seconds - time) / 0.01)
    return fade * (np.sin(2 * np.pi * frequency * time) + 0.3 * np.sin(4 * np.pi * frequency * time))


def _level(wave: np.ndarray) -> np.ndarray:
    return wave / max(float(wave.std()), 1e-12)
