"""What a user sees: the real command, from recordings to the gate, and one clear message for each kind of bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = ("--preset", "fast", "--set=train.epochs=2", "--set=noise.variants=1", "--set=data.min_subjects=1")


def test_the_installed_command_answers():
    executable = Path(sys.executable).with_name("spira-train")
    done = subprocess.run([executable, "config", "--preset", "turbo"], capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["exit"]) == (10, 10)
    assert "allowed: cough, default, fast, spira_v1" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def setup(command, lake: Path, runs: Path, partition: str = "2026-11-03", *more: str):
    return command("setup", "--lake", lake, "--runs", runs, "--partition", partition, *SETTINGS, *more)


@pytest.fixture
def lake(small_lake, tmp_path) -> Path:
    """A copy of the small lake that a test may spoil."""
    return Path(shutil.copytree(small_lake, tmp_path / "lake"))


def test_every_step_of_a_run(command, lake, tmp_path):
    code, line, errors = setup(command, lake, tmp_path / "runs")
    assert (code, line["outcome"]) == (0, "done"), errors
    run = line["run"]
    for step in ("extract", "features", "train"):
        code, line, errors = command(step, "--run", run, "--lake", lake)
        assert (code, line["outcome"], line["cached"]) == (0, "done", False), errors
        assert "Traceback" not in errors
    code, line, errors = command("validate", "--run", run, "--lake", lake)
    verdict = json.loads(Path(run, "validate", "verdict.json").read_text())
    assert (code, line["outcome"]) == (20, "refused")  # so few recordings prove nothing, whatever the model is
    assert any("at least 8 are asked for" in reason for reason in verdict["reasons"])
    assert "refused by the gate: the test set holds" in errors.replace("\n", " ")
    page = Path(run, "validate", "report.html").read_text()
    assert "refused" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ), "the page is self-contained"
    code, line, _ = command("package", "--run", run)
    assert (code, "no quality blessing" in line["message"]) == (20, True)


def _no_lake(lake: Path) -> None:
    shutil.rmtree(lake)


def _empty_lake(lake: Path) -> None:
    shutil.rmtree(lake / "landing")


@pytest.mark.parametrize(
    ("spoil", "words"), [(_no_lake, "not found; create one with"), (_empty_lake, "empty; recordings are expected")]
)
def test_no_lake_and_empty_lake(command, lake, tmp_path, spoil, words):
    spoil(lake)
    code, line, errors = setup(command, lake, tmp_path / "runs")
    assert (code, words in line["message"]) == (10, True)
    assert "Traceback" not in errors
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("key", ["yesterday", "2026-13-01", "2026-11-3", "../landing"])
def test_partition_key_that_is_no_date(command, lake, tmp_path, key):
    code, line, errors = setup(command, lake, tmp_path / "runs", key)
    assert (code, "partition" in line["message"]) == (10, True)
    assert "Traceback" not in errors


def test_partition_without_data_is_skipped(command, lake, tmp_path):
    run = setup(command, lake, tmp_path / "runs", "2026-11-09")[1]["run"]
    code, line, _ = command("extract", "--run", run, "--lake", lake)
    assert (code, line["outcome"]) == (99, "nothing_to_do")


def _edit(lake: Path, change) -> None:
    for file in (lake / "landing").glob("*/metadata.csv"):
        file.write_bytes(change(file.read_bytes()))


def test_excel_makes_no_difference(command, lake, tmp_path):
    """A byte order mark and semicolons, as a Brazilian Excel writes them."""
    _edit(lake, lambda text: b"\xef\xbb\xbf" + text.replace(b",", b";").replace(b"\n", b"\r\n"))
    run = setup(command, lake, tmp_path / "runs")[1]["run"]
    code, line, errors = command("extract", "--run", run, "--lake", lake)
    assert (code, line["summary"]["refused"]) == (0, 0), errors


def test_csv_without_the_needed_column(command, lake, tmp_path):
    _edit(lake, lambda text: text.replace(b"file_path,class,", b"file_path,klass,"))
    run = setup(command, lake, tmp_path / "runs")[1]["run"]
    code, line, errors = command("extract", "--run", run, "--lake", lake)
    assert (code, "metadata.csv" in line["message"], "class" in line["message"]) == (10, True, True)
    assert "Traceback" not in errors
    assert not (lake / "audio" / "2026-11-03").exists()


def test_one_class_only(command, lake, tmp_path):
    _edit(lake, lambda text: b"".join(r for r in text.splitlines(True) if b"controle/" not in r))
    run = setup(command, lake, tmp_path / "runs")[1]["run"]
    for step in ("extract", "features"):
        assert command(step, "--run", run, "--lake", lake)[0] == 0
    code, line, _ = command("train", "--run", run, "--lake", lake)
    assert (code, "split holds 0 controls" in line["message"]) == (10, True)


def test_two_subjects_only(command, lake, tmp_path):
    _edit(lake, lambda text: b"".join(text.splitlines(True)[:3]))
    run = setup(command, lake, tmp_path / "runs")[1]["run"]
    code, line, _ = command("extract", "--run", run, "--lake", lake)
    assert (code, "only 2 of 2 recordings are good" in line["message"]) == (10, True)
    assert json.loads((lake / "quarantine/2026-11-03/report.json").read_text())


def test_day_that_is_refused_now_is_not_trained_on_for_what_it_was(command, lake, tmp_path):
    run = setup(command, lake, tmp_path / "runs")[1]["run"]
    assert command("extract", "--run", run, "--lake", lake)[0] == 0
    assert (lake / "audio" / "2026-11-02").exists()
    file = lake / "landing" / "2026-11-02" / "metadata.csv"
    file.write_bytes(b"".join(file.read_bytes().splitlines(True)[:3]))
    code, _, errors = command("extract", "--run", run, "--lake", lake)
    assert (code, "leaving out 2026-11-02" in errors) == (0, True)
    assert not (lake / "audio" / "2026-11-02").exists()
    assert command("features", "--run", run, "--lake", lake)[0] == 0
    assert sorted(p.name for p in (lake / "features").iterdir()) == ["2026-11-01", "2026-11-03"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--no-such-option",), "No such option"),
        ((), "Missing option '--run'"),
        (("--run", "nowhere", "--lake", "nowhere"), "run `spira-train setup` first"),
    ],
)
def test_wrong_call_is_told_without_a_traceback(command, arguments, words):
    code, line, errors = command("train", *arguments)
    assert (code, words in line["message"]) == (10, True)
    assert "Traceback" not in errors


def test_names_of_recordings_never_appear(command, lake, tmp_path):
    names = [row.split(b",")[0].split(b"/")[-1][:-4].decode() for row in _rows(lake)]
    _edit(lake, lambda text: text.replace(b",1,F", b",9,F").replace(b".wav,0", b".wavv,0", 2))
    run = setup(command, lake, tmp_path / "runs")[1]["run"]
    said = ""
    for step in ("extract", "features", "train"):
        _, line, errors = command(step, "--run", run, "--lake", lake)
        said += json.dumps(line) + errors
    said += "".join(p.read_text() for p in (lake / "quarantine").rglob("*.csv"))
    assert names
    assert [name for name in names if name in said] == []


def _rows(lake: Path) -> list[bytes]:
    return [row for file in (lake / "landing").glob("*/metadata.csv") for row in file.read_bytes().splitlines()[1:]]
