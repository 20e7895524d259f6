"""Receiving, late labels, corrections: the ledger is the truth, landing follows it, and extract reads landing."""

import json

import pytest
from collecting import KEY, agrees, known, rows, sound, take
from deliveries import Day, refused, rows_of, run, voice, wav
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collect import facts, ledger
from collect.hearing import Unusable, listen
from collect.landing import settle
from collect.ledger import Declined
from collect.pseudonym import pseudonym
from collect.receive import label, receive, withdraw
from spira_train.outcome import BadInput
from spira_train.store import Lake, digest_bytes

DAY, NEXT = "2026-11-01", "2026-11-02"


def test_a_recording_with_label_and_consent_lands(lake):
    kept = take(lake, day=DAY, site="ward 3", spo2=91.5, sex="F", dyspnoea=4, subject="RGH 123")
    assert (kept.state, kept.again, kept.day) == ("landed", False, DAY)
    assert settle(lake, DAY) == {"landed": 1, "waiting": 0, "withdrawn": 0, "missing": 0}
    (row,) = rows(lake, DAY)
    assert row["subject"] == pseudonym(KEY, "RGH 123")
    assert (row["class"], row["idade"], row["site"], row["spo2"], row["sexo"]) == ("1", "40", "ward 3", "91.5", "F")
    assert row["nivel_falta_de_ar"] == "4"
    agrees(lake)
    everything = b"".join(lake.read(path) for path in lake.files())
    assert b"123" not in everything.replace(sound(), b"").replace(kept.id.encode(), b"") or b"RGH" not in everything


@pytest.mark.parametrize("missing", [{"label": None}, {"consent_training": False}])
def test_without_label_or_consent_it_waits(lake, missing):
    kept = take(lake, day=DAY, **missing)
    assert kept.state == "waiting"
    settle(lake, DAY)
    assert not lake.exists("landing")
    agrees(lake)


def test_the_same_again_changes_nothing(lake):
    kept = take(lake, day=DAY)
    settle(lake, DAY)
    before = {path: lake.read(path) for path in lake.files()}
    again = take(lake, day=NEXT, age=41, label="control")
    assert (again.id, again.day, again.again) == (kept.id, DAY, True)
    settle(lake, DAY)
    assert {path: lake.read(path) for path in lake.files()} == before
    with pytest.raises(Declined, match="another subject"):
        take(lake, subject="bea")


def test_a_label_may_come_days_later_and_be_corrected_and_every_one_is_kept(lake):
    kept = take(lake, day=DAY, label=None)
    label(lake, kept.id, "control", "ward-7", "negative test")
    assert label(lake, kept.id, "control", "ward-7", "negative test").again
    settle(lake, DAY)
    assert [row["class"] for row in rows(lake, DAY)] == ["0"]
    assert label(lake, kept.id, "patient", "dr-1", "X-ray").state == "landed"
    settle(lake, DAY)
    assert [row["class"] for row in rows(lake, DAY)] == ["1"]
    found = ledger.find(lake, kept.id)
    assert [(one["label"], one["who"], one["why"]) for one in found.labels] == [
        ("control", "ward-7", "negative test"),
        ("patient", "dr-1", "X-ray"),
    ]
    agrees(lake)
    with pytest.raises(Declined) as said:
        label(lake, "0" * 32, "patient", "x", "")
    assert said.value.reason == "unknown"


def test_events_keep_their_order_though_the_clock_goes_back(lake, monkeypatch):
    kept = take(lake, day=DAY, label=None)
    label(lake, kept.id, "patient", "a", "")
    monkeypatch.setattr("time.time_ns", lambda: 10**18)
    label(lake, kept.id, "control", "a", "")
    assert ledger.find(lake, kept.id).label == "control"


def test_what_others_delivered_for_the_day_stays(lake):
    day = (
        Day("file_path;class;idade;ward").add("a.wav", 1, sound(5), "", "7", "3").add("b.wav", 0, sound(6), "", "", "")
    )
    day.columns, day.rows = "file_path;class;idade;ward", ["a.wav;1;7;3", "./b.wav;0;;"]
    day.land(lake, DAY)
    settle(lake, DAY)  # nothing of ours: untouched
    assert lake.read("landing", DAY, "metadata.csv").startswith(b"file_path;class")
    kept = take(lake, day=DAY)
    settle(lake, DAY)
    found = {row["file_path"]: row for row in rows(lake, DAY)}
    assert set(found) == {"a.wav", "./b.wav", f"{kept.digest}.wav"}
    assert (found["a.wav"]["idade"], found["a.wav"]["ward"]) == ("7", "3")
    withdraw(lake, KEY, "ana", "x")
    assert [row["file_path"] for row in rows(lake, DAY)] == ["a.wav", "./b.wav"]


def test_metadata_of_others_that_cannot_be_read_stops_nobody_else(lake):
    Day("file_path,class", ["a.wav,1,2,3"]).land(lake, DAY)
    kept = take(lake, day=DAY)
    with pytest.raises(BadInput, match="correct it first"):
        settle(lake, DAY)
    assert lake.exists("landing", DAY, f"{kept.digest}.wav")
    Day("file_path,class", ["a.wav,1"]).land(lake, DAY)
    settle(lake, DAY)
    assert len(rows(lake, DAY)) == 2


def test_a_file_that_somebody_deleted_is_counted_and_not_listed(lake):
    kept = take(lake, day=DAY)
    take(lake, 1, day=DAY, subject="bea")
    settle(lake, DAY)
    lake.fs.rm_file(lake.path("landing", DAY, f"{kept.digest}.wav"))
    assert settle(lake, DAY)["missing"] == 1
    assert len(rows(lake, DAY)) == 1


def test_days_that_are_not_ours_are_never_touched(lake):
    Day(rows=["a.wav,1"], files={"a.wav": sound()}).land(lake, DAY)
    before = lake.read("landing", DAY, "metadata.csv")
    settle(lake, DAY)
    assert lake.read("landing", DAY, "metadata.csv") == before
    assert not lake.exists("collection", DAY)


def test_extract_reads_what_was_collected(disk):
    for seed in range(6):
        take(disk, seed, day=DAY, subject=f"s{seed}", label="patient" if seed % 2 else "control")
    take(disk, 6, day=DAY, subject="s0", label="patient")  # a subject with both labels: extract's to judge
    settle(disk, DAY)
    run(disk, DAY)
    assert len(rows_of(disk, DAY)) == 5
    assert {reason for _, reason in refused(disk, DAY)} == {"subject_two_labels"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "undecodable"), (b"hello", "undecodable"), (b"RIFF" + bytes(40), "undecodable"),
     (sound(0, 0.4), "too_short"), (wav(voice(0, 1) * 0), "silent"), (wav(voice(0, 121)), "too_long"),
     (wav(voice(0, 1), rate=4000), "unsupported")],
)  # fmt: skip
def test_the_first_look_names_what_is_wrong(content, reason):
    with pytest.raises(Unusable) as said:
        listen(content)
    assert said.value.reason == reason


def test_the_first_look_and_extracts_judgement_have_the_same_limits():
    from collect import hearing
    from spira_train import audio
    from spira_train.config import ExtractConfig

    limits = ExtractConfig()
    assert (limits.min_seconds, limits.max_seconds) == (hearing.MIN_SECONDS, hearing.MAX_SECONDS)
    assert hearing._MAGIC == audio._MAGIC


@pytest.mark.parametrize(("form", "extension"), [("WAV", "wav"), ("FLAC", "flac"), ("OGG", "ogg"), ("MP3", "mp3")])
def test_the_four_formats_are_heard(form, extension):
    assert listen(wav(voice(0, 1), format=form)).extension == extension


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 5), st.sampled_from(["patient", "control", None]), st.booleans()),
        st.tuples(st.just("label"), st.integers(0, 5), st.sampled_from(["patient", "control"]), st.just(True)),
        st.tuples(st.just("withdraw"), st.integers(0, 5), st.none(), st.just(True)),
        st.tuples(st.just("settle"), st.integers(0, 1), st.none(), st.just(True)),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OPERATIONS)
def test_whatever_happens_in_whatever_order_landing_agrees_in_the_end(tmp_path_factory, operations):
    lake, gone, labels = Lake(str(tmp_path_factory.mktemp("any") / "lake")), set(), {}
    ids = [digest_bytes(sound(seed))[:32] for seed in range(6)]
    for name, number, value, consent in operations:
        day = (DAY, NEXT)[number % 2]
        try:
            match name:
                case "take":
                    if not take(
                        lake, number, day, subject=f"s{number // 2}", label=value, consent_training=consent
                    ).again:
                        labels[number] = value
                case "label":
                    label(lake, ids[number], value, "x", "")
                    labels[number] = value
                case "withdraw":
                    withdraw(lake, KEY, f"s{number // 2}", "x")
                    gone.add(number // 2)
                case _:
                    settle(lake, day)
        except Declined as said:
            assert said.reason == ("unknown" if number not in labels and name == "label" else "withdrawn")
    for day in ledger.days(lake):
        settle(lake, day)
    agrees(lake)
    states = {number: ledger.find(lake, ids[number]) for number in labels}
    assert {n: one.label for n, one in states.items()} == labels
    assert {n for n, one in states.items() if one.state == "withdrawn"} == {n for n in labels if n // 2 in gone}


def test_an_event_is_a_small_file_of_json_without_a_name(lake):
    take(lake, day=DAY, subject="Maria da Silva")
    (name,) = lake.files("collection", DAY, "events")
    event = json.loads(lake.read("collection", DAY, "events", name))
    assert event["kind"] == "received"
    assert set(event) == {"kind", "time", "id", "digest", "file", "bytes", "seconds", "subject", "facts", "who"}
    assert "Maria" not in json.dumps(event)


def test_a_pseudonym_is_taken_as_it_is_where_no_key_is_given(lake):
    name = pseudonym(KEY, "ana")
    receive(lake, None, sound(), facts.read(known(subject=name)), "app", day=DAY)
    assert take(lake).again
    with pytest.raises(Declined):
        receive(lake, None, sound(1), facts.read(known(subject="ana")), "app", day=DAY)
