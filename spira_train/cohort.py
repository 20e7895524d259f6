"""Who the simulator records: people, their sessions and what goes wrong with them. Numbers only, no sound.

Sources of the constants: docs/data-card.md. Where a published figure is missing, the comment says so.
"""

import datetime
import uuid
from dataclasses import dataclass, fields, replace
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from spira_train.rng import Random

WORDS = 16  # of the prompt, so 15 places for a pause
PHRASE_STARTS = (2, 4, 5, 7, 9, 12, 15)  # words before which a speaker rather pauses
RETURNING = 0.1  # share of subjects recorded a second time, 1 to 7 days later
ODD = 0.1  # share of good recordings with a harmless oddity
DAMAGES = ("truncated", "garbage", "short", "silent", "clipped", "duplicate", "missing", "label")
ODDITIES = ("byte-rate", "list-before", "list-after", "stereo", "44100")
TRACKS_A_HOSPITAL, HOMES = 4, 8  # different rooms to be recorded in
HOSPITALS = ("hospital-1", "hospital-2", "hospital-3")
# Phase 1 held COVID-19 only; phase 2 held other causes, in shares that were not published: these are ours.
CAUSES = {"covid-19": 0.75, "pneumonia": 0.1, "copd": 0.08, "heart-failure": 0.07}

Strength = Annotated[float, Field(ge=0, le=1)]


class Simulation(BaseModel):
    """Settings of a simulated lake. The same settings give the same bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    subjects: Annotated[int, Field(ge=2, le=10000)] = Field(24, description="New subjects a day; every other a patient")
    days: Annotated[int, Field(ge=1, le=3660)] = Field(7, description="Days of collection, one partition each")
    start: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] = Field(
        "2020-05-11", description="First day of collection, YYYY-MM-DD"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(42, description="Seed of the whole lake")
    disease: Strength = Field(
        1.0, description="How much patients sound like patients: 0 like controls, 1 as in the published statistics"
    )
    ward: Strength = Field(
        0.5, description="How much the ward betrays patients: 0 not at all, 1 all in wards and all controls at home"
    )
    age: Strength = Field(0.5, description="How much older patients are than controls: 0 no difference, 1 as published")
    sex: Strength = Field(0.5, description="How much more often patients are men: 0 no difference, 1 as published")
    device: Strength = Field(
        0.3, description="How much the device betrays patients: 0 not at all, 1 patients WhatsApp and controls browser"
    )
    damaged: Strength = Field(0.03, description="Share of recordings that arrive damaged")
    noise_tracks: Annotated[int, Field(ge=2, le=64)] = Field(16, description="Ward-noise tracks of about a minute")

    @model_validator(mode="after")
    def days_exist(self) -> "Simulation":
        try:
            datetime.date.fromisoformat(self.start) + datetime.timedelta(days=self.days)
        except (ValueError, OverflowError):
            raise ValueError(f"start {self.start} with {self.days} days is not in the calendar") from None
        return self

    def dates(self) -> list[str]:
        """Partition keys, oldest first."""
        first = datetime.date.fromisoformat(self.start)
        return [(first + datetime.timedelta(days=day)).isoformat() for day in range(self.days)]


@dataclass(frozen=True)
class Law:
    """What a class is drawn from."""

    pauses: float  # mean number in an utterance
    pause_seconds: float  # mean length
    semitones: float  # mean pitch, from the voice's own
    wobble: float  # sd of pitch from word to word, in semitones, on top of the intonation
    age: float
    age_sd: float
    youngest: float
    oldest: float
    male: float  # share
    ward: float  # share recorded in a ward; the others at home
    whatsapp: float  # share sent by WhatsApp; the others by the web page


# Pauses: Fernandes-Svartman 2022. Pitch is published as "higher, and more variable" (Berti 2023); its size is ours, so
# that a small CNN reaches 86 % where nothing else betrays the class (published, in noise: 87 %).
# Age and sex: SPIRA phase 1. Place and device: phase 1 had every patient in a ward and every control at home.
PATIENTS = Law(3.16, 0.53, 2.5, 1.2, 53.0, 14.4, 19, 90, 0.543, 1.0, 1.0)
CONTROLS = Law(0.85, 0.13, 0.0, 0.5, 43.8, 14.9, 18, 83, 0.418, 0.0, 0.0)
_GOVERNED_BY = {
    "pauses": "disease", "pause_seconds": "disease", "semitones": "disease", "wobble": "disease",
    "age": "age", "age_sd": "age", "youngest": "age", "oldest": "age",
    "male": "sex", "ward": "ward", "whatsapp": "device",
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """One person: what stays the same from session to session."""

    name: str
    label: int  # 1 patient, 0 control
    sex: str
    age: int
    site: str
    device: str
    cause: str  # of a patient's insufficiency
    spo2: int | None  # %, patients only
    dyspnoea: int  # 0..5
    voice: int  # an index, to be taken modulo the voices of that sex
    semitones: float
    wobble: float
    tilt: float  # -0.4 dark .. 0.4 bright
    slow: bool  # of two rates of speech
    pauses: float  # this person's own mean number
    pause_seconds: float
    returns: int  # days until a second session; 0 never


@dataclass(frozen=True)
class Session:
    """One recording of one person on one day."""

    subject: Subject
    date: str
    file: str  # relative to the partition
    pauses: tuple[tuple[int, float], ...]  # (word that the pause precedes, seconds)
    pitches: tuple[float, ...]  # semitones, one a word
    edges: tuple[float, float]  # seconds of no speech before and after
    level: float  # peak of the speech, 1 is full scale
    room_peak: float  # peak of the noise around
    room_track: int
    room_offset: float  # 0..1, where in the track
    breath: float  # level of breath in long pauses, relative to the speech's peak
    damage: str = ""
    oddity: str = ""
    twin: str = ""  # file whose sound this one repeats, for a duplicate


def law(label: int, settings: Simulation) -> Law:
    """The law of a class: the disease moves patients away from controls, a confounder moves both from their middle."""
    blended = {}
    for name in (field.name for field in fields(Law)):
        patient, control = getattr(PATIENTS, name), getattr(CONTROLS, name)
        strength = getattr(settings, _GOVERNED_BY[name])
        base = control if _GOVERNED_BY[name] == "disease" else (patient + control) / 2
        blended[name] = base + strength * ((patient if label else control) - base)
    return Law(**blended)


def subject(settings: Simulation, date: str, index: int) -> Subject:
    """The `index`-th new subject of a day; depends on the day and the index, not on any other subject."""
    random = Random(settings.seed)
    rng = random.stream("subject", date, index)
    label = 1 - index % 2
    of = law(label, settings)
    age = int(np.clip(round(rng.normal(of.age, of.age_sd)), of.youngest, of.oldest))
    # SpO2 of 218 patient files: mean 93.5, sd 3.2, range 80-100, correlation with age -0.30.
    unusual = -0.30 * (age - of.age) / of.age_sd + np.sqrt(1 - 0.30**2) * rng.standard_normal()
    spo2 = int(np.clip(round(93.5 + 3.2 * unusual), 80, 100))
    in_ward, hospital = rng.random() < of.ward, str(rng.choice(HOSPITALS))
    cause = str(rng.choice(list(CAUSES), p=list(CAUSES.values())))
    breathless = int(rng.random() < 0.05)  # phase 1: 11 of 213 controls wrote 1, the others 0
    return Subject(
        name=f"s{random.integer('name', date, index):016x}"[:13],
        label=label,
        sex="M" if rng.random() < of.male else "F",
        age=age,
        site=hospital if in_ward else "home",
        device="whatsapp" if rng.random() < of.whatsapp else "browser",
        cause=cause if label else "",
        spo2=spo2 if label else None,
        dyspnoea=5 if label else breathless,
        voice=int(rng.integers(1 << 16)),
        semitones=float(np.clip(rng.normal(of.semitones, 1.5), -4, 5)),
        wobble=of.wobble * float(rng.uniform(0.7, 1.3)),
        tilt=float(rng.uniform(-0.4, 0.4)),
        # Older people speak a little slower, so an age confounder can be heard.
        slow=bool(rng.random() < np.clip(0.5 + (age - 48) / 100, 0, 1)),
        # People differ: these spreads give 88 % from pauses alone (published: 87-89 %); one Poisson law gives 97 %.
        pauses=of.pauses * float(rng.gamma(4.0, 1 / 4)),
        pause_seconds=of.pause_seconds * float(rng.gamma(6.0, 1 / 6)),
        returns=int(rng.integers(1, 8)) if rng.random() < RETURNING else 0,
    )


def sessions(settings: Simulation, date: str) -> list[Session]:
    """All recordings of a day, in the order of its metadata. A later day never changes an earlier one."""
    people = [subject(settings, date, index) for index in range(settings.subjects)]
    for earlier in (day for day in settings.dates() if day < date):
        gap = (datetime.date.fromisoformat(date) - datetime.date.fromisoformat(earlier)).days
        if gap <= 7:
            known = (subject(settings, earlier, index) for index in range(settings.subjects))
            people += [person for person in known if person.returns == gap]
    order = Random(settings.seed).stream("order", date).permutation(len(people))
    planned = [_session(settings, people[index], date, number) for number, index in enumerate(order)]
    return [_with_twin(one, planned) for one in planned]


def _session(settings: Simulation, person: Subject, date: str, number: int) -> Session:
    rng = Random(settings.seed).stream("session", date, person.name)
    damage = str(rng.choice(DAMAGES)) if rng.random() < settings.damaged else ""
    oddity = str(rng.choice(ODDITIES)) if rng.random() < ODD else ""
    name = uuid.UUID(bytes=rng.bytes(16), version=4)
    where = np.ones(WORDS - 1)
    where[[word - 1 for word in PHRASE_STARTS]] = 4.0
    count = min(int(rng.poisson(person.pauses)), WORDS - 1)
    words = sorted(1 + rng.choice(WORDS - 1, count, replace=False, p=where / where.sum()))
    lengths = person.pause_seconds * rng.gamma(4.0, 1 / 4, count)
    in_ward = person.site != "home"
    return Session(
        subject=person,
        date=date,
        file=f"pacientes/PTT-{date.replace('-', '')}-WA{number:04d}.wav" if person.label else f"controle/{name}_1.wav",
        pauses=tuple((int(word), float(length)) for word, length in zip(words, lengths, strict=True)),
        pitches=tuple(float(p) for p in person.semitones + np.clip(rng.normal(0, person.wobble, WORDS), -2.5, 2.5)),
        edges=(float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.2, 0.8))),
        level=float(rng.uniform(0.25, 0.75)),
        # Ward: limits measured by SPIRA v1 in the pauses of patients' files. Home: a quiet room, our figure.
        room_peak=float(rng.uniform(0.0335, 0.1923) if in_ward else np.exp(rng.uniform(np.log(0.001), np.log(0.012)))),
        room_track=int(rng.integers(TRACKS_A_HOSPITAL if in_ward else HOMES)),
        room_offset=float(rng.random()),
        breath=float(rng.uniform(0.0, 0.03)),
        damage=damage,
        oddity="" if damage else oddity,
    )


def _with_twin(one: Session, planned: list[Session]) -> Session:
    if one.damage != "duplicate":
        return one
    good = [other.file for other in planned if not other.damage and other.subject.label == one.subject.label]
    return replace(one, twin=good[0]) if good else replace(one, damage="truncated")
