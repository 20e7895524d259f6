"""The gate's questions take away what they say they take away, and ask everybody the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spira_train import probes
from spira_train.config import NoiseConfig

RATE = 16_000
RNG = np.random.default_rng(0)
TRACKS = [RNG.standard_normal(RATE * 3).astype(np.float32) * 0.1 for _ in range(3)]
LAW = NoiseConfig(inserts=1).insertion()
VOICES = [0.1 * RNG.standard_normal(RATE * seconds).astype(np.float32) for seconds in (1, 2)]
QUESTIONS = probes.Questions(LAW, TRACKS, "0123456789abcdef", VOICES)


def recording(seconds=3.0, room=0.001, seed=1):
    """Tone bursts of 0.4 s with pauses of 0.3 s, and a room around them."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    speaks = (time % 0.7) > 0.3
    speech = 0.3 * np.sin(2 * np.pi * 220 * time) * speaks + room * rng.standard_normal(len(time))
    return speech.astype(np.float32), speaks


def row(name="a1"):
    return {"recording": name, "label": 1}


def test_every_probe_has_a_name_and_the_length_of_the_recording():
    signal, _ = recording()
    variants = QUESTIONS.variants(signal, row())
    made = {"ward_noise_controls", "ward_noise_patients", "same_voices"}  # of answers to others
    assert set(variants) - {"voice_0", "voice_1"} | made == set(probes.NAMES)
    for name, variant in variants.items():
        assert variant.shape == (VOICES[int(name[-1])].shape if name.startswith("voice_") else signal.shape), name
        assert variant.dtype == np.float32, name
        assert np.isfinite(variant).all(), name


def test_the_noise_follows_the_recording_and_not_the_label():
    signal, _ = recording()
    patient = QUESTIONS.variants(signal, row() | {"label": 1})
    control = QUESTIONS.variants(signal, row() | {"label": 0})
    other = QUESTIONS.variants(signal, row("b2"))
    for name, variant in patient.items():
        np.testing.assert_array_equal(variant, control[name], name)
    assert not np.array_equal(patient["ward_noise"], other["ward_noise"])


@pytest.mark.parametrize("snr", probes.SNRS)
def test_noise_is_as_loud_as_its_name(snr):
    signal, _ = recording()
    variants = QUESTIONS.variants(signal, row())
    added = variants[f"ward_noise_{snr}db"] - signal
    assert 10 * np.log10(np.square(signal).mean() / np.square(added).mean()) == pytest.approx(snr, abs=0.1)


def test_speech_is_found_and_taken_away():
    signal, speaks = recording(room=0.003)
    spoken = probes.speaking(signal)
    assert (spoken[speaks]).mean() > 0.95
    assert (~spoken[~speaks]).mean() > 0.4  # its edges count as speech
    removed = QUESTIONS.variants(signal, row())["speech_removed"]
    np.testing.assert_array_equal(removed[~spoken], signal[~spoken])  # the pauses as they were
    assert abs(np.corrcoef(removed[speaks], signal[speaks])[0, 1]) < 0.1


def test_a_voice_turned_to_noise_keeps_its_level_and_colour_and_loses_its_pitch():
    """Digital silence instead would be far from all that a model knows, and more of it in those who pause less."""
    seconds = np.arange(3 * RATE) / RATE
    voice = sum(np.sin(2 * np.pi * 220 * k * seconds) / k for k in range(1, 6)).astype(
        np.float32
    )  # nothing beyond 1.2 kHz
    everywhere = np.ones(len(voice), bool)
    noise = probes.voiceless(voice, everywhere, np.random.default_rng(3))
    assert np.square(noise).mean() == pytest.approx(np.square(voice).mean(), rel=1e-3)
    before, after = (np.square(np.abs(np.fft.rfft(sound))) for sound in (voice, noise))
    high = 2000 * 3  # the bin of 2 kHz
    assert after[high:].sum() < 0.02 * after.sum()
    assert after.max() / after.sum() < 0.05 < before.max() / before.sum()  # no line stands out


def test_the_same_voices_stand_in_everybodys_room():
    """Nothing of who was recorded, nor how long they paused, but how loud their room is beside them."""
    quiet, loud, longer = (recording(seconds, room)[0] for seconds, room in ((3, 0.001), (3, 0.02), (9, 0.02)))
    variants = [QUESTIONS.variants(signal, row()) for signal in (quiet, loud, longer)]
    for number, voice in enumerate(VOICES):
        heard = [each[f"voice_{number}"] for each in variants]
        level = probes.loudness(quiet) / probes.loudness(voice)
        rooms = [one - level * voice for one in heard]
        assert [len(one) for one in heard] == 3 * [len(voice)]
        assert [float(room.std()) for room in rooms] == pytest.approx([0.001, 0.02, 0.02], rel=0.15)
        assert np.abs(np.corrcoef(rooms[1], voice)[0, 1]) < 0.1


def test_the_voices_are_each_class_s_clearest():
    rows = [{"recording": f"{n}", "label": n % 2, "snr_db": float(snr)} for n, snr in enumerate((9, 5, 30, 1, 20, 40))]
    assert probes.voices(rows, lambda one: one["recording"]) == ["2", "4", "5", "1"]
    assert probes.voices(rows[:1], lambda one: one["recording"]) == ["0"]


def test_the_answers_to_the_voices_in_one_room_become_one():
    answers = {"clean": [0.5, 0.5], "voice_0": [0.9, 1.0], "voice_1": [0.1, 0.5]}
    assert probes.together(answers)["same_voices"] == pytest.approx([0.5, 0.999], abs=1e-4)  # 1 counts as 1 - 1e-6
    assert probes.together({"clean": [0.5]}) == {}


@pytest.mark.parametrize("signal", [np.zeros(RATE, np.float32), np.full(RATE // 2, 0.1, np.float32)])
def test_odd_recordings_are_asked_as_well(signal):
    for name, variant in QUESTIONS.variants(signal, row()).items():
        assert np.isfinite(variant).all(), name
        assert name.startswith("voice_") or len(variant) == len(signal), name


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=20))
def test_noise_is_swapped_by_class(answers):
    clean, noisy, labels = zip(*answers, strict=True)
    found = probes.swapped({"clean": clean, "ward_noise": noisy}, labels)
    for i, label in enumerate(labels):
        assert found["ward_noise_controls"][i] == (clean[i] if label else noisy[i])
        assert found["ward_noise_patients"][i] == (noisy[i] if label else clean[i])


def test_asking_keeps_the_order_of_the_recordings():
    signals = {str(n): np.full(RATE, n / 100, np.float32) for n in range(11)}
    rows = [row(name) for name in signals]
    found = probes.ask(
        lambda one, waves: [int(one["recording"]) + float(waves[0].mean()) for _ in waves],
        rows, lambda one: signals[one["recording"]], QUESTIONS,
    )  # fmt: skip
    assert found["clean"] == pytest.approx([n + n / 100 for n in range(11)], abs=1e-5)
    assert all(len(values) == 11 for values in found.values())
