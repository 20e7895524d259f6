"""The study of ward noise from end to end, in a form too small to find anything: table and figures come out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import ward_report
from bench.ward_report import OURS, V1

ROOT = Path(__file__).parents[2]


def study(*options: object) -> str:
    command = [sys.executable, "-m", "bench.ward_study", *map(str, options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_tiny_study_gives_its_table_and_figures_and_redraws_them_to_the_byte(tmp_path):
    printed = study("--out", tmp_path, "--tiny", "--processes", 1)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {line["name"] for line in lines} == {OURS, *(f"v1 {name}" for name in V1)}
    assert all(0 <= p <= 1 for line in lines for answers in line["answers"].values() for p in answers)
    assert printed.count("\n| v1 ") == len(V1)
    assert "intervals apart" in printed
    pictures = {name: (tmp_path / name).read_bytes() for name in ("study-collapse.svg", "study-robustness.svg")}
    assert all(b"<svg" in picture for picture in pictures.values())
    study("--out", tmp_path, "--only-report", "--pictures", tmp_path / "again")
    assert {name: (tmp_path / "again" / name).read_bytes() for name in pictures} == pictures


def line(seed: int, clean: list[float], ward: list[float]) -> dict:
    return {"seed": seed, "labels": [0, 0, 1, 1], "subjects": list("abcd"), "answers": {"clean": clean, "ward": ward}}


def test_accuracy_is_by_recording_with_noise_on_controls_only_where_so_asked():
    lines = [line(1, [0.1, 0.2, 0.9, 0.8], [0.9, 0.2, 0.1, 0.1]), line(2, [0.1, 0.7, 0.9, 0.8], [0.9, 0.9, 0.1, 0.1])]
    assert ward_report.measure(lines, "clean").seeds == [100.0, 75.0]
    assert ward_report.measure(lines, "ward").seeds == [25.0, 0.0]
    controls = ward_report.measure(lines, "controls")
    assert controls.seeds == [75.0, 50.0]
    assert controls.low <= controls.mean == 62.5 <= controls.high
    assert ward_report.measure(lines, "0 dB") is None


def lake(seed: int, *wrong: int) -> dict:
    """A line of `--lakes`: twenty recordings, of which those in `wrong` were answered wrongly in every condition."""
    labels = [number % 2 for number in range(20)]
    said = [0.9 if label != (number in wrong) else 0.1 for number, label in enumerate(labels)]
    subjects = [f"{seed}-{number}" for number in range(20)]
    return {"seed": seed, "labels": labels, "subjects": subjects, "answers": {"clean": said, "ward": said}}


def test_lakes_are_resampled_as_well_as_subjects_and_rows_are_compared_pair_by_pair():
    ours = [lake(101, 0), lake(102, 0, 1, 2, 3)]
    theirs = [lake(101, 0, 4), lake(102, 0, 1, 2, 3, 4)]
    one = ward_report.across(ours, "controls")
    assert one.seeds == [95.0, 80.0]
    assert one.mean == 87.5
    assert one.low < 80  # both draws may be of the worse lake, whose subjects vary too
    assert one.high > 95
    ahead = ward_report.across(ours, "ward", theirs)
    assert ahead.seeds == [5.0, 5.0]
    assert ahead.low >= 0  # what both rows miss is in both
    same = ward_report.across(ours, "clean", ours)
    assert (same.low, same.mean, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="different recordings"):
        ward_report.across(ours, "clean", theirs[::-1])


def test_the_ablation_says_how_far_each_change_is_from_the_default_on_the_lakes_that_both_saw(tmp_path):
    answered = {
        101: {"default": lake(101, 0), "no noise": lake(101, 0, 1, 2), "no devices": lake(101)},
        102: {"default": lake(102, 0), "no noise": lake(102, 0, 1, 2, 3, 4)},
    }
    for number, lines in answered.items():
        place = tmp_path / str(number)
        place.mkdir()
        text = "".join(json.dumps(line | {"name": name}) + "\n" for name, line in lines.items())
        (place / "results.jsonl").write_text(text)
    table = ward_report.ablation_report(tmp_path, tmp_path / "figure.svg").splitlines()
    assert [row.split(" | ")[:2] for row in table[2:]] == [["| no devices", "1"], ["| no noise", "2"]]
    assert "| 100.0, +5.0 [" in table[2]
    assert "| 80.0, -15.0 [" in table[3]
    assert b"<svg" in (tmp_path / "figure.svg").read_bytes()
