"""`spira-train simulate`: a lake of synthetic recordings in the form SPIRA published its own.

`cohort` decides who is recorded, `speech` and `ward` make the sound, this module delivers it: recordings, metadata,
noise tracks, data card. The same settings give the same bytes.
"""

import csv
import io
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import ValidationError

from spira_train import cohort, speech, ward
from spira_train.cohort import Session, Simulation
from spira_train.outcome import BadInput
from spira_train.progress import track
from spira_train.rng import Random
from spira_train.store import Lake, digest_bytes, digest_json, disk_errors, publish

HEADER = ("file_path", "class", "sexo", "idade", "nivel_falta_de_ar", "subject", "site", "device", "cause", "spo2")
CARD = "DATA_CARD.md"
DELIVERED_RATE = 48000  # Hz; most of SPIRA's originals
NOISE_RATE = 16000  # Hz
ROOM_SECONDS = 30.0
# Hz, half-power points. WhatsApp sends Opus at a low bit rate; a browser's recorder keeps more.
BANDS = {"whatsapp": (90.0, 6800.0), "browser": (50.0, 10500.0)}
CLIPPED_SHARE = 0.25  # of a clipped recording's samples

Files = Iterator[tuple[str, bytes, float]]  # path in the folder, content, seconds of audio


def run(*, lake: str, settings: Simulation, force: bool = False) -> dict[str, Any]:
    """Write the simulated lake and return a summary of it.

    A partition that stands there with the same bytes is left alone. Raises `BadInput` where it differs (unless
    `force`), where the lake holds recordings that are not simulated, and where eSpeak NG is missing.
    """
    started = time.perf_counter()
    place = Lake(lake)
    if place.fs.isfile(place.path()):
        raise BadInput(f"lake {lake}: is a file; give a folder")
    if place.partitions() and not place.exists(CARD):
        raise BadInput(f"lake {lake}: holds recordings that the simulator did not make; give an empty folder instead")
    voices = bank_digest()
    with disk_errors(lake):
        place.fs.makedirs(place.path(), exist_ok=True)
        place.fs.pipe_file(place.path(CARD), data_card(settings, voices).encode())

    noise = _settle(place, "noise", partial(noise_files, settings), force)
    made, planned = {}, []
    for date in track(settings.dates(), "simulate", settings.days):
        day = cohort.sessions(settings, date)
        made[date] = _settle(place, f"landing/{date}", partial(day_files, settings, day), force)
        planned += day
    audio, seconds = sum(one["audio"] for one in made.values()), time.perf_counter() - started
    return {
        "partitions": settings.dates(),
        "written": [date for date, one in made.items() if one["written"]],
        "subjects": len({session.subject.name for session in planned}),
        "recordings": len(planned),
        "damaged": sum(bool(session.damage) for session in planned),
        "audio_seconds": round(audio, 1),
        "seconds": round(seconds, 1),
        "times_real_time": round(audio / seconds),
        "voices": voices,
        "digest": digest_json({folder: one["digests"] for folder, one in (made | {"noise": noise}).items()}),
    }


def read_settings(values: Mapping[str, Any]) -> Simulation:
    """Settings by name; raises `BadInput` with one line for each wrong one."""
    try:
        return Simulation.model_validate(dict(values))
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or 'days'}: {e['msg']}" for e in error.errors()]
        raise BadInput("\n".join(["simulate:", *lines])) from None


def bank_digest() -> str:
    """SHA-256 of the bank of utterances: tells two builds of eSpeak NG apart."""
    return digest_json([digest_bytes(samples.tobytes()) for samples, _ in speech.bank().values()])


def data_card(settings: Simulation, voices: str) -> str:
    """The lake's data card, in Markdown. `voices`: digest of the bank of utterances."""
    pages = Environment(  # noqa: S701 (Markdown needs no escaping)
        loader=PackageLoader("spira_train", "."), undefined=StrictUndefined, keep_trailing_newline=True
    )
    fields = [(name, getattr(settings, name), field.description) for name, field in Simulation.model_fields.items()]
    laws = {1: cohort.PATIENTS, 0: cohort.CONTROLS}
    return pages.get_template("data_card.md.j2").render(fields=fields, voices=voices, prompt=speech.PROMPT, laws=laws)


def noise_files(settings: Simulation) -> Files:
    """The lake's noise tracks; the list has no header, as SPIRA's had none."""
    random = Random(settings.seed)
    names = []
    for index in range(settings.noise_tracks):
        seconds = float(random.stream("noise length", index).integers(55, 66))  # whole: keeps the FFT fast
        family, wave = ward.ward(Random(random.integer("noise tracks")), index, seconds, NOISE_RATE)
        names.append(f"ward-{index:02d}-{family}.wav")
        yield names[-1], wav(_int16(0.7 * wave / np.abs(wave).max()), NOISE_RATE), seconds
    yield "noise_data.csv", "".join(f"{name}\n" for name in names).encode(), 0.0


def day_files(settings: Simulation, day: list[Session]) -> Files:
    """Every file of a partition: its recordings, then its metadata."""
    by_file = {session.file: session for session in day}
    for session in day:
        if session.damage != "missing":
            sounding = by_file.get(session.twin, session)
            samples = render(settings, sounding)
            yield session.file, deliver(sounding, samples), len(samples) / speech.RATE
    yield "metadata.csv", metadata(day), 0.0


def metadata(day: list[Session]) -> bytes:
    """`metadata.csv` of a partition, in SPIRA's columns and ours."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(HEADER)
    for one in day:
        who = one.subject
        label = 7 if one.damage == "label" else who.label
        spo2 = "" if who.spo2 is None else who.spo2
        facts = (who.sex, who.age, who.dyspnoea, who.name, who.site, who.device, who.cause, spo2)
        rows.writerow((one.file, label, *facts))
    return text.getvalue().encode()


def render(settings: Simulation, session: Session) -> np.ndarray:
    """What the device hears: speech, breath and the room, float64 (n,) at 24 kHz, before the device's own band."""
    who = session.subject
    key, rest = speech.key(who.sex, who.voice, who.slow, who.semitones)
    speeds = [2 ** ((pitch - who.semitones + rest) / 12) for pitch in session.pitches]
    wave, gaps = speech.speak(speech.bank()[key], speeds, session.pauses, session.edges, who.tilt)
    n = len(wave)
    if session.damage == "silent":
        return np.zeros(n)
    crop = _crop(_room(settings.seed, who.site, session.room_track), session.room_offset, n)
    breath = session.breath * gaps * _crop(_breath(settings.seed), session.room_offset, n)
    return session.level * (wave + breath) + session.room_peak * crop / crop.max()


def deliver(session: Session, heard: np.ndarray) -> bytes:
    """The file that arrives: `heard` through the device, at its sampling rate, with what went wrong."""
    rate = 44100 if session.oddity == "44100" else DELIVERED_RATE
    low, high = BANDS[session.subject.device]
    frequency = np.fft.rfftfreq(len(heard), 1 / speech.RATE)
    band = 1 / np.sqrt((1 + (low / np.maximum(frequency, 1e-3)) ** 4) * (1 + (frequency / high) ** 12))
    n = len(heard) * rate // speech.RATE
    wave = np.fft.irfft(np.fft.rfft(heard) * band, n) * (n / len(heard))
    if session.damage == "clipped":
        wave = wave / np.quantile(np.abs(wave), 1 - CLIPPED_SHARE)
    if session.damage == "short":
        wave = wave[: rate // 5]
    samples = _int16(wave)
    if session.oddity == "stereo":
        samples = np.stack([samples, samples], axis=1)  # (n, 2)
    file = wav(samples, rate, session.oddity)
    if session.damage == "truncated":
        return file[:30]
    if session.damage == "garbage":
        return b"<html><body>502 Bad Gateway</body></html>\n" * 20
    return file


def wav(samples: np.ndarray, rate: int, oddity: str = "") -> bytes:
    """A PCM16 WAV file of int16 (n,) or (n, channels); `oddity`: a quirk that SPIRA's own files show."""
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    byte_rate = 192000 if oddity == "byte-rate" else rate * channels * 2
    form = struct.pack("<HHIIHH", 1, channels, rate, byte_rate, channels * 2, 16)
    software = _chunk(b"LIST", b"INFO" + _chunk(b"ISFT", b"Lavf58.29.100\0"))
    chunks = [_chunk(b"fmt ", form), _chunk(b"data", samples.astype("<i2").tobytes())]
    if oddity.startswith("list-"):
        chunks.insert(1 if oddity == "list-before" else 2, software)
    return _chunk(b"RIFF", b"WAVE" + b"".join(chunks))


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content


def _int16(wave: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(wave * 32767), -32768, 32767).astype(np.int16)


@cache
def _room(seed: int, site: str, number: int) -> np.ndarray:
    # Never a track of lake/noise: the gate must not insert the very noise that a model has heard in training.
    random = Random(Random(seed).integer("rooms"))
    if site == "home":
        return ward.home(random, number, ROOM_SECONDS, speech.RATE)
    index = cohort.HOSPITALS.index(site) * cohort.TRACKS_A_HOSPITAL + number
    return ward.ward(random, index, ROOM_SECONDS, speech.RATE)[1]


@cache
def _breath(seed: int) -> np.ndarray:
    return ward.breath(Random(seed), ROOM_SECONDS, speech.RATE)


def _crop(wave: np.ndarray, offset: float, n: int) -> np.ndarray:
    start = int(offset * len(wave))
    return np.resize(np.roll(wave, -start), n)


def _settle(place: Lake, folder: str, files: Callable[[], Files], force: bool) -> dict[str, Any]:
    """Write `files` into `folder` of the lake, or leave it alone where they stand there already."""
    parts = folder.split("/")
    digests, audio = {}, 0.0
    if place.exists(*parts):
        standing = set(place.files(*parts))
        same = True
        for path, content, seconds in files():
            same = path in standing and place.read(*parts, path) == content
            if not same:
                break
            digests[path] = digest_bytes(content)
            audio += seconds
        if same and standing == set(digests):
            return {"written": False, "digests": digests, "audio": audio}
        if not force:
            raise BadInput(
                f"lake {place.uri}: {folder} already holds something else; give another lake or settings, "
                "or replace it with --force"
            )
        digests, audio = {}, 0.0
    with publish(place.fs, place.path(*parts)) as staging:
        for path, content, seconds in files():
            (staging / path).parent.mkdir(exist_ok=True)
            (staging / path).write_bytes(content)
            digests[path] = digest_bytes(content)
            audio += seconds
    return {"written": True, "digests": digests, "audio": audio}
