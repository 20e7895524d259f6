"""The simulator: the same settings give the same lake, and classes differ by what the settings say and no more."""

import csv
import io
import json
import os
import subprocess
import sys
import wave
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import ValidationError

from spira_train import cohort, simulate, speech
from spira_train.cohort import Simulation
from spira_train.outcome import BadInput
from spira_train.store import Lake, digest_folder

SMALL = {"subjects": 4, "days": 2, "noise_tracks": 2, "damaged": 0.0}
NO_BIAS = {"ward": 0.0, "age": 0.0, "sex": 0.0, "device": 0.0}


def make(folder: Path, **changes) -> dict:
    return simulate.run(lake=str(folder), settings=Simulation(**(SMALL | changes)))


def plan(**changes) -> list[cohort.Session]:
    settings = Simulation(**({"subjects": 100, "days": 6} | changes))
    return [session for date in settings.dates() for session in cohort.sessions(settings, date)]


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("simulated")
    return folder, make(folder)


def rows(folder: Path, date: str) -> list[dict]:
    with (folder / "landing" / date / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# The lake


def test_another_process_writes_the_same_bytes(lake, tmp_path):
    code = (
        "import sys, json; from spira_train import simulate; "
        "simulate.run(lake=sys.argv[1], settings=simulate.read_settings(json.loads(sys.argv[2])))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(tmp_path), json.dumps(SMALL)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert digest_folder(tmp_path) == digest_folder(lake[0])


def test_adding_a_day_leaves_earlier_days_alone(lake, tmp_path):
    make(tmp_path)
    before = digest_folder(tmp_path / "landing")
    summary = make(tmp_path, days=3)
    after = digest_folder(tmp_path / "landing")
    assert summary["written"] == ["2020-05-13"]
    assert before.items() <= after.items()
    assert {path.split("/")[0] for path in after.keys() - before.keys()} == {"2020-05-13"}


def test_another_seed_gives_other_recordings(lake, tmp_path):
    other = make(tmp_path, seed=7, days=1)
    first = set(digest_folder(lake[0]).values())
    assert other["digest"] != lake[1]["digest"]
    assert not first & set(digest_folder(tmp_path / "landing").values())


def test_a_second_run_changes_nothing(lake):
    folder = lake[0]
    times = {path: path.stat().st_mtime_ns for path in (folder / "landing").rglob("*")}
    again = make(folder)
    assert again["written"] == []
    assert again["digest"] == lake[1]["digest"]
    assert times == {path: path.stat().st_mtime_ns for path in (folder / "landing").rglob("*")}


def test_a_partition_that_differs_is_replaced_only_by_force(lake, tmp_path):
    make(tmp_path, days=1)
    recording = next((tmp_path / "landing").rglob("*.wav"))
    recording.write_bytes(b"something else")
    with pytest.raises(BadInput, match="landing/2020-05-11 already holds something else"):
        make(tmp_path, days=1)
    assert recording.read_bytes() == b"something else"
    forced = simulate.run(lake=str(tmp_path), settings=Simulation(**(SMALL | {"days": 1})), force=True)
    assert forced["written"] == ["2020-05-11"]
    untouched = digest_folder(lake[0] / "landing" / "2020-05-11")
    assert digest_folder(tmp_path / "landing" / "2020-05-11") == untouched


def test_recordings_of_people_are_never_mixed_with_simulated_ones(tmp_path):
    (tmp_path / "landing" / "2024-01-01").mkdir(parents=True)
    with pytest.raises(BadInput, match="did not make"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["landing"]


def test_a_file_is_no_lake(tmp_path):
    (tmp_path / "lake").write_text("")
    with pytest.raises(BadInput, match="is a file"):
        make(tmp_path / "lake")


def test_the_lake_has_the_published_form(lake):
    folder, summary = lake
    assert Lake(str(folder)).partitions() == summary["partitions"] == ["2020-05-11", "2020-05-12"]
    for date in summary["partitions"]:
        day = rows(folder, date)
        assert list(day[0]) == list(simulate.HEADER)
        assert len(day) >= SMALL["subjects"]
        for row in day:
            where, name = row["file_path"].split("/")
            assert where == ("pacientes" if row["class"] == "1" else "controle")
            assert (
                name.startswith(f"PTT-{date.replace('-', '')}-WA") if row["class"] == "1" else name.endswith("_1.wav")
            )
            with wave.open(str(folder / "landing" / date / row["file_path"])) as file:
                assert (file.getsampwidth(), file.getframerate() in (44100, 48000)) == (2, True)
                assert 6 < file.getnframes() / file.getframerate() < 30
                heard = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
            assert 0.2 < np.abs(heard).max() < 1
            assert np.sqrt(np.mean(heard**2)) > 0.01
    noises = (folder / "noise" / "noise_data.csv").read_text().splitlines()
    assert len(noises) == SMALL["noise_tracks"]
    for name in noises:
        with wave.open(str(folder / "noise" / name)) as file:
            assert 50 < file.getnframes() / file.getframerate() < 70


def test_no_room_is_a_noise_track(monkeypatch):
    seen: list[tuple[int, int]] = []

    def remember(random, index, seconds, rate):
        seen.append((random.seed, index))
        return "ventilator", np.ones(8)

    monkeypatch.setattr(simulate.ward, "ward", remember)
    tracks = len(list(simulate.noise_files(Simulation()))) - 1
    noise = set(seen)
    seen.clear()
    for hospital in cohort.HOSPITALS:
        for number in range(cohort.TRACKS_A_HOSPITAL):
            simulate._room.__wrapped__(Simulation().seed, hospital, number)
    assert len(noise) == tracks
    assert len(set(seen)) == len(cohort.HOSPITALS) * cohort.TRACKS_A_HOSPITAL
    assert not noise & set(seen)


def test_the_data_card_in_the_documentation_is_the_default_one():
    voices = simulate.bank_digest()
    card = Path(__file__).parents[2] / "docs" / "data-card.md"
    assert card.read_text() == simulate.data_card(Simulation(), voices)


# The people


def test_statistics_are_the_published_ones():
    people = {session.subject.name: session for session in plan(**(NO_BIAS | {"age": 1.0, "sex": 1.0}))}.values()
    for label, of in ((1, cohort.PATIENTS), (0, cohort.CONTROLS)):
        group = [session for session in people if session.subject.label == label]
        lengths = [length for session in group for _, length in session.pauses]
        assert len(group) == 300
        assert np.mean([len(session.pauses) for session in group]) == pytest.approx(of.pauses, rel=0.12)
        assert np.mean(lengths) == pytest.approx(of.pause_seconds, rel=0.12)
        assert np.mean([session.subject.age for session in group]) == pytest.approx(of.age, abs=3)
        assert np.mean([session.subject.sex == "M" for session in group]) == pytest.approx(of.male, abs=0.08)
        assert of.youngest <= min(s.subject.age for s in group) <= max(s.subject.age for s in group) <= of.oldest
        assert np.std(np.concatenate([np.diff(s.pitches) for s in group])) == pytest.approx(1.4 * of.wobble, rel=0.15)
    patients = [session.subject for session in people if session.subject.label]
    spo2 = [who.spo2 for who in patients]
    assert np.mean(spo2) == pytest.approx(93.5, abs=0.6)
    assert np.std(spo2) == pytest.approx(3.2, abs=0.4)
    assert np.corrcoef(spo2, [who.age for who in patients])[0, 1] == pytest.approx(-0.30, abs=0.12)
    assert {who.dyspnoea for who in patients} == {5}
    assert all(session.subject.spo2 is None for session in people if not session.subject.label)


def test_without_disease_and_confounders_both_classes_have_one_law():
    settings = Simulation(disease=0.0, **NO_BIAS)
    assert cohort.law(1, settings) == cohort.law(0, settings)
    groups = [[s for s in plan(disease=0.0, **NO_BIAS) if s.subject.label == label] for label in (1, 0)]
    for fact in (
        lambda s: len(s.pauses),
        lambda s: sum(length for _, length in s.pauses),
        lambda s: np.mean(s.pitches),
        lambda s: np.std(s.pitches),
        lambda s: s.room_peak,
        lambda s: s.level,
        lambda s: s.subject.age,
        lambda s: s.subject.sex == "M",
        lambda s: s.subject.slow,
        lambda s: s.subject.device == "whatsapp",
        lambda s: s.subject.site == "home",
    ):
        patients, controls = ([float(fact(s)) for s in group] for group in groups)
        error = np.sqrt(np.var(patients) / len(patients) + np.var(controls) / len(controls))
        assert abs(np.mean(patients) - np.mean(controls)) < 4 * error


def test_the_disease_moves_patients_and_leaves_controls_alone():
    laws = [(cohort.law(1, s), cohort.law(0, s)) for s in (Simulation(disease=d) for d in (0.0, 0.5, 1.0))]
    assert len({control for _, control in laws}) == 1
    assert [patient.pauses for patient, _ in laws] == pytest.approx([0.85, 2.005, 3.16])


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_confounders_are_as_strong_as_asked(strength):
    people = [session.subject for session in plan(ward=strength, device=strength)]
    for label, sign in ((1, 1), (0, -1)):
        group = [who for who in people if who.label == label]
        expected = 0.5 + sign * strength / 2
        assert np.mean([who.site != "home" for who in group]) == pytest.approx(expected, abs=0.08)
        assert np.mean([who.device == "whatsapp" for who in group]) == pytest.approx(expected, abs=0.08)


def test_some_subjects_return_with_the_same_class():
    sessions = plan(days=10)
    times = Counter(session.subject.name for session in sessions)
    twice = [name for name, count in times.items() if count == 2]
    assert set(times.values()) == {1, 2}
    assert 0.03 < len(twice) / len(times) < 0.12
    for name in twice:
        first, second = [session for session in sessions if session.subject.name == name]
        assert first.subject == second.subject
        assert first.date < second.date
        assert first.pitches != second.pitches


# What goes wrong


@pytest.mark.parametrize("damaged", [0.0, 0.2, 1.0])
def test_the_share_of_damaged_recordings_is_respected(damaged):
    sessions = plan(damaged=damaged)
    assert np.mean([bool(session.damage) for session in sessions]) == pytest.approx(damaged, abs=0.06)
    if damaged == 0.2:
        assert {session.damage for session in sessions} == {"", *cohort.DAMAGES}
        assert {session.oddity for session in sessions} == {"", *cohort.ODDITIES}


def test_damage_is_what_it_is_called():
    settings = Simulation(subjects=60, days=1, damaged=0.6)
    day = cohort.sessions(settings, settings.start)
    chosen = {session.damage: session for session in day if session.damage}
    good = {session.file: session for session in day if not session.damage}
    few = [*chosen.values(), good[chosen["duplicate"].twin]]
    files = {path: content for path, content, _ in simulate.day_files(settings, few)}

    def samples(damage: str) -> np.ndarray:
        with wave.open(io.BytesIO(files[chosen[damage].file])) as file:
            return np.frombuffer(file.readframes(file.getnframes()), "<i2")

    assert set(chosen) == set(cohort.DAMAGES)
    assert chosen["missing"].file not in files
    assert files[chosen["duplicate"].file] == files[chosen["duplicate"].twin]
    assert np.mean(np.abs(samples("clipped").astype(int)) >= 32767) > 0.05
    assert not samples("silent").any()
    assert len(samples("short")) == 48000 // 5
    for undecodable in ("truncated", "garbage"):
        with pytest.raises((wave.Error, EOFError)):
            samples(undecodable)
    table = list(csv.DictReader(io.StringIO(files["metadata.csv"].decode())))
    assert [row["class"] for row in table if row["file_path"] == chosen["label"].file] == ["7"]


def test_oddities_leave_the_sound_alone():
    tone = (8000 * np.sin(np.arange(4800) / 20)).astype(np.int16)
    for oddity in ("", "byte-rate", "list-before", "list-after"):
        file = simulate.wav(tone, 48000, oddity)
        assert int.from_bytes(file[4:8], "little") == len(file) - 8
        with wave.open(io.BytesIO(file)) as read:
            assert np.array_equal(np.frombuffer(read.readframes(read.getnframes()), "<i2"), tone)
    assert int.from_bytes(simulate.wav(tone, 48000, "byte-rate")[28:32], "little") == 192000


# The voices


def test_pauses_are_silent_and_as_long_as_asked():
    utterance = speech.bank()["f1", speech.TEMPI[0], 50]
    plain, _ = speech.speak(utterance, [1.0] * 16, [], (0.4, 0.4), 0.0)
    paused, gaps = speech.speak(utterance, [1.0] * 16, [(5, 1.0), (9, 0.4)], (0.4, 0.4), 0.0)
    assert len(paused) - len(plain) == pytest.approx(1.4 * speech.RATE, abs=speech.BLOCK)
    assert len(paused) % speech.BLOCK == 0
    assert not paused[gaps == 1].any()
    inside = np.flatnonzero(np.diff((gaps == 1).astype(int)))
    lengths = np.diff(inside)[1::2] / speech.RATE
    assert lengths == pytest.approx([1.0, 0.4], abs=0.03)


def test_faster_playback_raises_the_pitch():
    utterance = speech.bank()["m1", speech.TEMPI[0], 50]
    one, _ = speech.speak(utterance, [1.0] * 16, [], (0.2, 0.2), 0.0)
    two, _ = speech.speak(utterance, [1.25] * 16, [], (0.2, 0.2), 0.0)
    centre = [np.average(np.arange(len(w) // 2 + 1) / len(w), weights=np.abs(np.fft.rfft(w))) for w in (one, two)]
    assert centre[1] / centre[0] == pytest.approx(1.25, rel=0.1)


def test_the_bank_is_never_made_of_voices_that_differ_from_run_to_run():
    import espeakng_loader

    variants = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    for voice in (*speech.VOICES["F"], *speech.VOICES["M"]):
        settings = (variants / voice).read_text(errors="replace").splitlines()
        assert not [line for line in settings if line.startswith("breath")]


def test_a_machine_without_the_voices_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(speech.sys, "executable", "/bin/false")
    with pytest.raises(BadInput, match="pip install espeakng-loader"):
        speech.bank.__wrapped__()


# The settings


@examples(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(list(Simulation.model_fields)),
    value=st.one_of(st.integers(), st.floats(), st.text(max_size=12), st.none(), st.booleans()),
)
def test_settings_are_taken_or_refused_with_their_name(name, value):
    try:
        settings = simulate.read_settings({name: value})
    except BadInput as error:
        assert name in str(error) or "days" in str(error)
    else:
        assert len(settings.dates()) == settings.days
        assert cohort.subject(settings, settings.dates()[-1], 0).label == 1


@pytest.mark.parametrize(
    "wrong", [{"disease": 1.01}, {"subjects": 1}, {"start": "2020-02-30"}, {"start": "9999-12-31"}, {"sneezes": 1}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        simulate.read_settings(wrong)
    with pytest.raises(ValidationError):
        Simulation(**wrong)


def test_every_setting_explains_itself():
    for name, field in Simulation.model_fields.items():
        assert field.description, name
