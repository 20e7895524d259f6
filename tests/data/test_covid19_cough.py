"""Real, dirty recordings: every refusal of extract against what was measured on the files by other means."""

import csv
import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from spira_train import covid19_cough, drift, extract, manifest, noise
from spira_train.config import Config
from spira_train.outcome import BadInput
from spira_train.store import Lake, digest_file

SHARED = Path(os.environ.get("SPIRA_SHARED") or Path(__file__).resolve().parents[3] / "shared" / "data")
COUGH = next((p for p in (SHARED / "covid19-cough", SHARED / "data" / "covid19-cough") if p.exists()), SHARED)
DAYS = (covid19_cough.CALL_CENTER_DAY, covid19_cough.TELEGRAM_DAY)
real = pytest.mark.skipif(
    not (COUGH / "metadata.json").exists(),
    reason="needs the covid19-cough recordings: set SPIRA_SHARED to their parent",
)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    uri = str(tmp_path_factory.mktemp("cough") / "lake")
    covid19_cough.run(source=COUGH, lake=uri)
    return Lake(uri)


@pytest.fixture(scope="module")
def extracted(imported: Lake) -> tuple[Lake, dict[str, dict]]:
    return imported, {
        day: extract.run(lake=imported, config=Config(partition=day), partition=day)["summary"] for day in DAYS
    }


@real
@pytest.mark.slow
def test_the_counts_are_those_measured(extracted: tuple[Lake, dict[str, dict]]) -> None:
    summaries = extracted[1]
    calls, messages = (summaries[day] for day in DAYS)
    assert (calls["delivered"], calls["accepted"], calls["patients"], calls["controls"]) == (700, 696, 494, 202)
    assert calls["reasons"] == {"too_short": 2, "undecodable": 2}
    assert (messages["delivered"], messages["accepted"]) == (624, 390)
    assert (messages["patients"], messages["controls"]) == (68, 322)
    # Of the 230 with contradicting labels two are too short as well, which is found first.
    assert messages["reasons"] == {"contradicting_labels": 228, "duplicate": 3, "too_short": 3}
    assert calls["accepted"] + messages["accepted"] == 1086


@real
@pytest.mark.slow
def test_exactly_the_right_files_are_kept(extracted: tuple[Lake, dict[str, dict]]) -> None:
    lake = extracted[0]
    with (COUGH / "clean_manifest.csv").open(encoding="utf-8", newline="") as stream:
        clean = {digest_file(COUGH / row["file"]): row for row in csv.DictReader(stream) if not row["drop_reason"]}
    kept = {}
    for day in DAYS:
        for row in pq.read_table(io.BytesIO(lake.read("audio", day, manifest.NAME))).to_pylist():
            kept[row["source_digest"]] = row
    assert set(kept) == set(clean)
    for digest, row in kept.items():
        facts = clean[digest]
        assert (str(row["label"]), row["site"]) == (facts["label"], facts["source"])
        assert (str(row["source_rate"]), str(row["source_channels"])) == (facts["sr"], facts["channels"])
        assert row["seconds"] == pytest.approx(float(facts["duration_s"]), abs=0.002)
        assert row["bandwidth_hz"] <= row["source_rate"] / 2
    narrow = [row["bandwidth_hz"] for row in kept.values() if row["site"] == "call-center"]
    wide = [row["bandwidth_hz"] for row in kept.values() if row["site"] == "telegram"]
    assert np.median(narrow) <= 4000 < 7000 < np.median(wide)


@real
@pytest.mark.slow
def test_another_source_is_drift_and_another_half_of_the_same_is_none(extracted: tuple[Lake, dict[str, dict]]) -> None:
    calls, messages = (
        pq.read_table(io.BytesIO(extracted[0].read("audio", day, manifest.NAME))).to_pylist() for day in DAYS
    )
    found = {finding.name: finding for finding in drift.compare(drift.statistics(calls), messages)}
    drifted = {name for name, finding in found.items() if finding.drifted}
    assert {"site", "bandwidth_hz", "label", "source_rate", "source_channels"} <= drifted
    assert found["site"].text.startswith("site: telegram 100%, was 0% ")
    assert not drifted & {"sex", "age", "cause", "score", "features"}  # nobody delivered them
    halves = calls[::2], calls[1::2]  # in the order of digests: at random
    assert not [f.text for f in drift.compare(drift.statistics(halves[0]), halves[1]) if f.drifted]


@real
@pytest.mark.slow
def test_what_tells_the_label_stays_behind_and_a_second_import_does_nothing(imported: Lake) -> None:
    for day in DAYS:
        header = imported.read("landing", day, "metadata.csv").decode().splitlines()[0]
        assert header == "file_path,class,subject,site,device"
    assert covid19_cough.run(source=COUGH, lake=imported.uri)["written"] == []
    with pytest.raises(BadInput, match="already holds something else"):
        covid19_cough.run(source=COUGH, lake=imported.uri, call_center_day=DAYS[1], telegram_day="2020-12-03")


@real
@pytest.mark.slow
def test_noise_is_split_by_its_source(imported: Lake) -> None:
    tracks = noise.catalogue(imported, salt="spira", test=0.3)
    assert len(tracks) == 55
    assert Counter(track.split for track in tracks).keys() == {"train", "test"}
    fires = {track.source for track in tracks if "/4-181563" in track.file or "/4-182369" in track.file}
    assert fires == {"kingsrow: Fire Crackling 01"}  # delivered as WAV and as MP3
    sounds = noise.load(imported, tracks, "train") + noise.load(imported, tracks, "test")
    assert len(sounds) == 55
    # Clips with up to 60 % digital silence among them: no crop of any may be silent.
    rng = np.random.default_rng(0)
    assert all(np.abs(noise.crop(sound, 8000, rng)).max() >= noise.SILENT_PEAK for sound in sounds)


def test_both_sources_need_a_day_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a day of its own"):
        covid19_cough.run(source=tmp_path, lake=str(tmp_path / "lake"), call_center_day=DAYS[1])


def test_another_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not the covid19-cough data set"):
        covid19_cough.run(source=tmp_path, lake=str(tmp_path / "lake"))
    (tmp_path / "metadata.json").write_text("{}")
    (tmp_path / "metadata.json").write_text(json.dumps([{"filename": "x.mp3"}]))
    with pytest.raises(BadInput, match="not the list of recordings"):
        covid19_cough.run(source=tmp_path, lake=str(tmp_path / "lake"))
