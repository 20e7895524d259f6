import io
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchaudio.functional import resample

from spira_train import audio
from spira_train.audio import AudioError, as_float, decode, from_flac, to_flac

LIMITS = {"min_seconds": 0.5, "max_seconds": 12.0, "silence_dbfs": -60.0, "max_clipped": 0.02}


def tone(seconds: float = 1.0, rate: int = 16000, hertz: float = 440.0, peak: float = 0.5) -> np.ndarray:
    return peak * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def encode(samples: np.ndarray, rate: int = 16000, form: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def wav(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(n + struct.pack("<I", len(c)) + c + b"\0" * (len(c) % 2) for n, c in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WAVE" + body


def reason(content: bytes, **limits: float) -> str:
    with pytest.raises(AudioError) as caught:
        decode(content, **(LIMITS | limits))
    assert caught.value.reason in audio.REASONS
    return caught.value.reason


def test_pcm16_at_16_khz_is_kept_bit_for_bit() -> None:
    samples = np.random.default_rng(0).integers(-32700, 32700, 16000).astype(np.int16)
    heard = decode(encode(samples), **LIMITS)
    assert np.array_equal(heard.samples, samples)
    assert np.array_equal(from_flac(to_flac(heard.samples)), samples)
    assert heard.digest == audio.digest(samples)
    assert np.array_equal(as_float(heard) * 32768, samples.astype(np.float32))
    assert as_float(heard).dtype == np.float32


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_every_wav_width_is_the_same_tone(subtype: str) -> None:
    heard = decode(encode(tone(), 16000, "WAV", subtype), **LIMITS)
    assert heard.peak == pytest.approx(0.5, abs=0.02)
    assert heard.rms_dbfs == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.3)


@pytest.mark.parametrize(("form", "subtype"), [("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
def test_other_formats(form: str, subtype: str | None) -> None:
    heard = decode(encode(tone(2.0, 48000), 48000, form, subtype), **LIMITS)
    assert heard.seconds == pytest.approx(2.0, abs=0.15)
    assert heard.peak == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000])
def test_rates(rate: int) -> None:
    heard = decode(encode(tone(1.0, rate), rate), **LIMITS)
    assert (heard.source_rate, len(heard.samples)) == (rate, 16000)
    # Away from the edges, where the filter has all of its context.
    assert np.abs(as_float(heard) - tone())[200:-200].max() < 0.02


@given(rate=st.sampled_from([8000, 11025, 22050, 44100, 48000, 192000]), length=st.integers(1, 40000))
@settings(max_examples=30, deadline=None)
def test_resampling_equals_torchaudio(rate: int, length: int) -> None:
    samples = np.random.default_rng(length).standard_normal(length).astype(np.float32) / 4
    ours = audio._to_16k(audio._Source(samples, rate, 1, 1.0))
    theirs = resample(torch.from_numpy(samples.astype(np.float64)), rate, 16000).numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-13


@pytest.mark.slow
def test_threads_change_no_bit() -> None:
    program = (
        "import sys, torch, numpy as np; torch.set_num_threads(int(sys.argv[1])); from spira_train import audio;"
        "import io, soundfile; b = io.BytesIO(); x = np.random.default_rng(3).standard_normal(480000) / 9;"
        "soundfile.write(b, x, 44100, format='WAV', subtype='FLOAT');"
        "print(audio.decode(b.getvalue(), min_seconds=0, max_seconds=60, silence_dbfs=-60, max_clipped=1).digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program, threads],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": threads},
        ).stdout
        for threads in ("1", "2", "3")
    }
    assert len(digests) == 1


def test_the_loudest_channel_is_taken_never_the_mean() -> None:
    quiet, loud = tone(hertz=300, peak=0.05), tone(hertz=440, peak=0.4)
    for pair in ([quiet, loud], [loud, quiet], [-loud, loud * 0.9]):
        heard = decode(encode(np.stack(pair, axis=1)), **LIMITS)
        assert heard.source_channels == 2
        assert heard.peak == pytest.approx(0.4, abs=0.001)


def test_a_constant_offset_is_not_loudness() -> None:
    voice, stuck = tone(peak=0.1), np.full(16000, 0.6)
    assert decode(encode(np.stack([stuck, voice], axis=1)), **LIMITS).peak == pytest.approx(0.1, abs=0.001)
    assert reason(encode(stuck)) == "silent"


def test_spira_quirks_of_wav() -> None:
    samples = (tone() * 32767).astype("<i2").tobytes()
    wrong_rate = struct.pack("<HHIIHH", 1, 1, 16000, 999, 2, 16)  # byte-rate that fits nothing
    tags = (b"LIST", b"INFOISFT\x0e\0\0\0Lavf58.29.100\0"), (b"id3 ", b"abc")
    plain = decode(wav((b"fmt ", wrong_rate), (b"data", samples)), **LIMITS)
    before = decode(wav((b"fmt ", wrong_rate), *tags, (b"data", samples)), **LIMITS)
    after = decode(wav((b"fmt ", wrong_rate), (b"data", samples), *tags), **LIMITS)
    assert plain.digest == before.digest == after.digest
    assert len(plain.samples) == 16000


def test_a_streamed_wav_promises_too_much_and_is_read_to_its_end() -> None:
    content = bytearray(encode(tone(), subtype="PCM_16"))
    at = content.index(b"data") + 4
    content[at : at + 4] = b"\xff\xff\xff\xff"
    assert decode(bytes(content), **LIMITS).seconds == 1.0


def test_refusals() -> None:
    assert reason(b"") == "undecodable"
    assert reason(b"<html>502 Bad Gateway</html>") == "undecodable"
    assert reason(encode(tone())[:30]) == "undecodable"
    assert reason(encode(tone())[:20000]) == "undecodable"  # cut off on the way
    assert reason(encode(np.zeros(0))) == "undecodable"
    assert reason(encode(tone(0.4))) == "too_short"
    assert reason(encode(tone(12.1))) == "too_long"
    assert reason(encode(np.zeros(16000))) == "silent"
    assert reason(encode(np.clip(tone(peak=2.0), -1, 1))) == "clipped"
    assert reason(encode(np.clip(tone(peak=2.0), -1, 1), subtype="PCM_U8")) == "clipped"
    assert reason(encode(tone(peak=2000.0), subtype="FLOAT")) == "clipped"
    assert reason(encode(np.where(np.arange(16000) == 7, np.nan, tone()), subtype="FLOAT")) == "not_finite"
    assert reason(encode(np.where(np.arange(16000) == 7, np.inf, tone()), subtype="FLOAT")) == "not_finite"
    assert reason(encode(tone(), 4000)) == "unsupported"
    assert reason(encode(tone(), 44099)) == "unsupported"  # its resampling kernel would take gigabytes
    assert reason(encode(np.stack([tone()] * 3, axis=1))) == "unsupported"


def test_the_shortest_and_the_longest_that_pass() -> None:
    assert decode(encode(tone(0.5)), **LIMITS).seconds == 0.5
    assert decode(encode(tone(12.0)), **LIMITS).seconds == 12.0
    assert decode(encode(np.full(1, 0.5)), **(LIMITS | {"min_seconds": 0.0, "silence_dbfs": -120.0})).seconds > 0


def test_a_bomb_is_refused_before_it_unfolds(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encode(np.zeros(192000 * 60, np.int16), 192000, "FLAC")
    assert len(bomb) < 300_000
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *a, **k: pytest.fail("read though the header says no"))
    assert reason(bomb) == "too_long"


def test_a_header_that_lies_cannot_make_it_read_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    frames_read = []
    genuine = soundfile.SoundFile.read

    def spy(self: soundfile.SoundFile, frames: int, **rest: object) -> np.ndarray:
        frames_read.append(frames)
        return genuine(self, frames, **rest)

    monkeypatch.setattr(soundfile.SoundFile, "read", spy)
    monkeypatch.setattr(soundfile.SoundFile, "frames", property(lambda self: 2**63 - 1))
    assert reason(encode(tone(20.0))) == "too_long"
    assert sum(frames_read) <= 12 * 16000 + 1


def test_messages_hold_no_address_of_memory() -> None:
    for content in (b"RIFF", b"fLaC" + bytes(40), b"OggS" + bytes(40), b"ID3" + bytes(40)):
        with pytest.raises(AudioError) as caught:
            decode(content, **LIMITS)
        assert "0x" not in str(caught.value)


def test_bandwidth_tells_telephone_from_studio() -> None:
    noise = np.random.default_rng(0).standard_normal
    assert decode(encode(noise(48000) / 9, 48000), **LIMITS).bandwidth_hz > 7500
    assert decode(encode(noise(8000) / 9, 8000), **LIMITS).bandwidth_hz <= 4000
    assert decode(encode(tone(hertz=1000)), **LIMITS).bandwidth_hz == pytest.approx(1000, abs=400)


def syllables(seed: int, seconds: float = 4.0) -> np.ndarray:
    """A buzz in syllables of an eighth of a second, a third of them silent."""
    n = int(seconds * 16000)
    loud = np.repeat(np.random.default_rng(seed).permutation(np.resize([0, 0.5, 1], n // 2000)), 2000)
    return 0.05 * loud * sum(tone(seconds, hertz=120 * k, peak=2 / k) for k in range(1, 20))


@given(seed=st.integers(0, 1000), level=st.floats(0.05, 1), seconds=st.sampled_from([1.5, 4.0, 9.0]))
@settings(max_examples=15, deadline=None)
def test_snr_follows_the_noise_that_was_added_not_the_level(seed: int, level: float, seconds: float) -> None:
    speech, noise = syllables(seed, seconds), np.random.default_rng(seed).standard_normal(int(seconds * 16000))
    noise *= np.sqrt(np.mean(speech**2) / np.mean(noise**2))
    added = np.arange(5, 31, 5)
    found = [decode(encode(level * (speech + noise / 10 ** (db / 20))), **LIMITS).snr_db for db in added]
    assert np.diff(found).min() > 3
    assert np.abs(found - added).max() < 5


def test_a_click_moves_snr_little() -> None:
    speech = syllables(0) + np.random.default_rng(0).standard_normal(64000) / 300
    clicked = np.where(np.arange(64000) == 999, 0.95, speech / 10)
    before, after = (decode(encode(heard), **LIMITS).snr_db for heard in (speech / 10, clicked))
    assert after == pytest.approx(before, abs=0.2)


def test_snr_of_what_has_no_pauses_or_no_noise_is_a_number() -> None:
    assert decode(encode(tone()), **LIMITS).snr_db == audio.FLOOR_SNR_DB
    assert decode(encode(np.random.default_rng(0).standard_normal(64000) / 9), **LIMITS).snr_db < 0
    gated = np.where(np.arange(16000) < 8000, 0, tone())
    assert decode(encode(gated), **LIMITS).snr_db == pytest.approx(
        20 * np.log10(0.5 / np.sqrt(2) * 32768) + 10.8, abs=1
    )


def test_facts_are_finite_numbers() -> None:
    heard = decode(encode(np.full(16000, 0.25)), **(LIMITS | {"silence_dbfs": -120.0}))
    assert heard.rms_dbfs == audio.FLOOR_DBFS
    assert np.isfinite([heard.seconds, heard.snr_db, heard.peak, heard.clipped, heard.bandwidth_hz]).all()


def test_noise_tracks_may_be_faint_and_keep_what_16_bits_would_lose() -> None:
    faint = audio.decode_float(encode(tone(peak=1e-5), subtype="FLOAT"), max_seconds=5)
    assert faint.dtype == np.float32
    assert np.abs(faint).max() == pytest.approx(1e-5, rel=1e-3)


_SEEDS = [encode(tone(0.6), 16000, form) for form in ("WAV", "FLAC", "OGG", "MP3")]


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    content = bytearray(draw(st.sampled_from(_SEEDS)))
    for _ in range(draw(st.integers(1, 12))):
        at = draw(st.one_of(st.integers(0, min(120, len(content) - 1)), st.integers(0, len(content) - 1)))
        content[at] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))])


@given(st.one_of(st.binary(max_size=400), broken(), st.binary(max_size=200).map(lambda b: b"RIFF\0\0\0\0WAVE" + b)))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_bytes_crash_it(content: bytes) -> None:
    try:
        heard = decode(content, **LIMITS)
    except AudioError as error:
        assert error.reason in audio.REASONS
    else:
        assert heard.samples.dtype == np.int16
        assert 0 < len(heard.samples) <= 12 * 16000
