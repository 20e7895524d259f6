import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from deliveries import DAY, NEXT, Day, everything, good_day, refused, rows_of, run, voice, wav
from hypothesis import given, settings
from hypothesis import strategies as st

from spira_train import extract, manifest
from spira_train.audio import digest, from_flac
from spira_train.config import SplitConfig
from spira_train.landing import Row
from spira_train.manifest import Heard, Past
from spira_train.split import split_of
from spira_train.store import Lake


def test_what_is_good_passes_without_loss(lake: Lake) -> None:
    day = good_day()
    day.columns += ",sexo,idade,nivel_falta_de_ar,subject,site,device,cause,spo2,split"
    day.add(
        "r9.wav", 1, wav(voice(9), format="FLAC"), "F", "61", "5", "Maria", "ward", "phone", "covid", "91.5", "test"
    )
    day.land(lake, DAY)
    report = run(lake)
    assert report["summary"] | {"audio_seconds": 0, "splits": 0} == {
        "delivered": 5, "accepted": 5, "refused": 0, "reasons": {}, "controls": 2, "patients": 3, "subjects": 5,
        "splits": 0, "audio_seconds": 0, "warnings": [],
    }  # fmt: skip
    rows = {row["recording"]: row for row in rows_of(lake)}
    assert list(rows) == sorted(digest(voice(seed)) for seed in (0, 1, 2, 3, 9))
    for seed in (0, 1, 2, 3, 9):
        row = rows[digest(voice(seed))]
        assert np.array_equal(from_flac(lake.read("audio", DAY, row["file"])), voice(seed))
    full = rows[digest(voice(9))]
    assert (full["sex"], full["age"], full["dyspnoea"], full["spo2"], full["split"]) == ("F", 61, 5, 91.5, "test")
    assert (full["site"], full["device"], full["cause"], full["label"]) == ("ward", "phone", "covid", 1)
    assert full["seconds"] == pytest.approx(0.6)
    assert (full["source_rate"], full["source_channels"]) == (16000, 1)
    schema = pq.read_schema(io.BytesIO(lake.read("audio", DAY, manifest.NAME)))
    assert schema.equals(manifest.SCHEMA)
    assert sorted(lake.files("audio", DAY)) == sorted(
        [row["file"] for row in rows.values()] + [manifest.NAME, "report.json"]
    )
    text = json.dumps(report) + str(rows)
    assert "Maria" not in text
    assert "r9" not in text


def test_each_refusal_has_its_reason(lake: Lake) -> None:
    day = good_day(count=8)
    clipped = np.clip(voice(50).astype(np.int32) * 40, -32768, 32767).astype(np.int16)
    expected = {
        "undecodable": ("x.wav", 1, b"no sound"),
        "too_short": ("short.wav", 1, wav(voice(51, 0.4))),
        "too_long": ("long.wav", 1, wav(voice(52, 3.2))),
        "silent": ("silent.wav", 0, wav(np.zeros(16000, np.int16))),
        "clipped": ("loud.wav", 0, wav(clipped)),
        "missing_file": ("gone.wav", 0, None),
        "unknown_label": ("label.wav", 3, wav(voice(53))),
        "path_escapes": ("../../x.wav", 1, None),
        "duplicate": ("again.wav", 0, wav(voice(0), format="FLAC")),
    }
    for entry in expected.values():
        day.add(*entry)
    day.land(lake, DAY)
    report = run(lake, extract={"max_seconds": 3.0, "min_accepted_fraction": 0.3})
    assert refused(lake) == list(enumerate(expected, 10))
    assert report["summary"]["reasons"] == dict.fromkeys(sorted(expected), 1)
    assert report["summary"]["accepted"] == 8
    kept = json.loads(lake.read("quarantine", DAY, "report.json"))
    assert kept["fingerprint"] == report["fingerprint"]
    assert ".wav" not in lake.read("quarantine", DAY, "refused.csv").decode()


def test_contradictions_refuse_all_of_the_group_and_duplicates_keep_the_first(disk: Lake) -> None:
    day = good_day()
    day.add("same.wav", 1, wav(voice(0)))  # r0 is a control
    day.add("again.wav", 1, wav(voice(1)))
    day.add("twice.wav", 1, wav(voice(1), format="FLAC"))
    day.land(disk, DAY)
    run(disk, extract={"min_accepted": 1, "min_accepted_fraction": 0})
    assert refused(disk) == [
        (2, "contradicting_labels"), (6, "contradicting_labels"), (7, "duplicate"), (8, "duplicate")
    ]  # fmt: skip


def test_a_subject_with_both_labels_or_two_splits_is_refused_with_all_recordings(disk: Lake) -> None:
    day = Day("file_path,class,subject,split")
    day.add("a.wav", 0, wav(voice(1)), "ana", "").add("b.wav", 1, wav(voice(2)), "ana", "")
    day.add("c.wav", 0, wav(voice(3)), "ana", "").add("d.wav", 1, wav(voice(4)), "bea", "")
    day.add("e.wav", 1, b"broken", "bea", "").add("f.wav", 1, wav(voice(5)), "cid", "test")
    day.add("g.wav", 1, wav(voice(6)), "cid", "train").add("h.wav", 1, wav(voice(7)), "dan", "")
    day.add("i.wav", 1, wav(voice(8)), "dan", "validation")
    day.land(disk, DAY)
    run(disk, extract={"min_accepted": 1, "min_accepted_fraction": 0})
    two_labels = [(line, "subject_two_labels") for line in (2, 3, 4)]
    assert refused(disk) == [*two_labels, (6, "undecodable"), (7, "subject_two_splits"), (8, "subject_two_splits")]
    # dan's split was given with one of his recordings: it holds for the other too
    splits = {row["recording"]: row["split"] for row in rows_of(disk)}
    assert splits[digest(voice(7))] == splits[digest(voice(8))] == "validation"


def test_earlier_partitions_count(disk: Lake) -> None:
    day = Day("file_path,class,subject,split")
    day.add("a.wav", 0, wav(voice(1)), "ana", "").add("b.wav", 1, wav(voice(2)), "bea", "test")
    day.add("c.wav", 1, wav(voice(3)), "cid", "train").add("d.wav", 0, wav(voice(4)), "dan", "")
    day.land(disk, DAY)
    run(disk)
    day = Day("file_path,class,subject,split")
    day.add("again.wav", 0, wav(voice(1), format="FLAC"), "ana", "")
    day.add("other.wav", 0, wav(voice(2)), "eva", "")  # a patient's voice, now as a control
    day.add("ana.wav", 1, wav(voice(5)), "ana", "").add("bea.wav", 1, wav(voice(6)), "bea", "")
    day.add("cid.wav", 1, wav(voice(7)), "cid", "validation").add("dan.wav", 0, wav(voice(8)), "dan", "")
    day.land(disk, NEXT)
    run(disk, NEXT, extract={"min_accepted": 1, "min_accepted_fraction": 0})
    assert refused(disk, NEXT) == [
        (2, "subject_two_labels"), (3, "contradicting_labels"), (4, "subject_two_labels"), (6, "subject_two_splits")
    ]  # fmt: skip
    splits = {row["recording"]: row["split"] for row in rows_of(disk, NEXT)}
    assert splits[digest(voice(6))] == "test"  # bea stays where she was put
    assert len(splits) == 2


def test_a_duplicate_of_an_earlier_partition(disk: Lake) -> None:
    good_day().land(disk, DAY)
    run(disk)
    good_day(first=2).land(disk, NEXT)
    run(disk, NEXT, extract={"min_accepted": 1})
    assert refused(disk, NEXT) == [(2, "duplicate"), (3, "duplicate")]
    # And the partition after it does not count for the one before.
    assert run(disk)["cached"]


def test_the_second_run_changes_no_byte_and_new_history_is_seen(lake: Lake) -> None:
    good_day(first=10).land(lake, NEXT)
    few = {"min_accepted": 2}
    first = run(lake, NEXT, extract=few)
    before = everything(lake)
    second = run(lake, NEXT, extract=few)
    assert (first["cached"], second["cached"]) == (False, True)
    assert second["fingerprint"] == first["fingerprint"]
    assert everything(lake) == before
    good_day(first=12).land(lake, DAY)  # an earlier day arrives late, with two of the same recordings
    run(lake, DAY)
    third = run(lake, NEXT, extract=few)
    assert third["summary"]["reasons"] == {"duplicate": 2}
    assert len([path for path in before if path not in everything(lake)]) == 2  # the duplicates are gone from audio


def test_the_order_of_the_metadata_changes_nothing_but_the_lines(disk: Lake, tmp_path: Path) -> None:
    day, turned = good_day(), good_day()
    turned.rows.reverse()
    other = Lake(str(tmp_path / "other"))
    day.land(disk, DAY)
    turned.land(other, DAY)
    assert run(disk)["outputs"] == run(other)["outputs"]


def test_one_class_alone_is_fine(disk: Lake) -> None:
    day = Day()
    for seed in range(4):
        day.add(f"{seed}.wav", 1, wav(voice(seed)))
    day.land(disk, DAY)
    assert run(disk)["summary"]["patients"] == 4


HEARD = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 1), st.sampled_from([None, "train", "test"])),
    max_size=14,
)


@given(HEARD, HEARD)
@settings(deadline=None)
def test_judging_loses_no_row_and_leaks_no_subject(
    one: list[tuple[int, int, int, str | None]], two: list[tuple[int, int, int, str | None]]
) -> None:
    law = SplitConfig()
    past = Past({}, {}, {})
    everyone: list[Heard] = []
    for batch in (one, two):
        heard = [
            Heard(
                Row(line, "", f"subject {subject}", label, split=split),  # type: ignore[arg-type]
                {"recording": f"sound {sound}", "source_digest": ""},
            )
            for line, (sound, subject, label, split) in enumerate(batch, 2)
        ]
        accepted, away = extract.judge(heard, [h.row for h in heard], past, law)
        assert sorted([h.row.line for h in accepted] + [r.line for r in away]) == [h.row.line for h in heard]
        everyone += accepted
        past = Past(
            {h.recording: h.row.label for h in everyone},
            {h.row.subject: (h.row.label, str(h.row.split)) for h in everyone},
            {},
        )
    assert len({h.recording for h in everyone}) == len(everyone)
    for subject in {h.row.subject for h in everyone}:
        mine = [h.row for h in everyone if h.row.subject == subject]
        assert len({row.label for row in mine}) == len({row.split for row in mine}) == 1
        if not any(split for _, who, _, split in [*one, *two] if f"subject {who}" == subject):
            assert mine[0].split == split_of(subject, law.salt, law.validation, law.test)
