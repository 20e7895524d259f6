"""Packaging: reproducible, self-contained, and only with a blessing bound to these very weights."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import ZipFile

import pytest
from runs import archive_of, make_run, pack, packaged

from spira_train import package
from spira_train.config import Config
from spira_train.outcome import Refused
from spira_train.store import digest_file


def test_the_same_inputs_give_the_same_bytes_wherever_and_side_by_side(tmp_path: Path) -> None:
    places = [tmp_path / "a", tmp_path / "somewhere" / "else", tmp_path / "c"]
    made = [make_run(place) for place in places]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda it: pack(*it), made))
    assert len({digest_file(archive_of(run)) for run, _ in made}) == 1
    assert len({(run / "package" / "package.json").read_bytes() for run, _ in made}) == 1


def test_two_models_packaged_at_once_do_not_mix(tmp_path: Path) -> None:
    made = [make_run(tmp_path, seed=seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda it: pack(*it), made))
    for run, _ in made:
        with ZipFile(archive_of(run)) as archive:
            assert archive.read("model.safetensors") == (run / "train" / "model.safetensors").read_bytes()
    assert len({archive_of(run).name for run, _ in made}) == 4


def test_packaging_again_changes_nothing(tmp_path: Path) -> None:
    run, config, _ = packaged(tmp_path)
    before = (run / "package" / "report.json").read_bytes()
    assert pack(run, config)["cached"] is True
    assert (run / "package" / "report.json").read_bytes() == before


def test_other_handler_code_is_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, first = packaged(tmp_path / "a")
    changed = tmp_path / "handler.py"
    changed.write_text(package.HANDLER.read_text() + "\n# changed\n")
    monkeypatch.setattr(package, "HANDLER", changed)
    _, _, second = packaged(tmp_path / "b")
    assert first["version"] != second["version"]
    assert first["weights"] == second["weights"]


def test_the_archive_runs_on_its_own_code(tmp_path: Path) -> None:
    run, _, _ = packaged(tmp_path)
    unpacked = tmp_path / "unpacked"
    with ZipFile(archive_of(run)) as archive:
        archive.extractall(unpacked)
    program = (
        f"import sys; sys.path.insert(0, {str(unpacked)!r})\n"
        "from pathlib import Path; from spira_train import audio, inference\n"
        f"inference.load(Path({str(unpacked)!r}))\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'spira_train'), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    files = [Path(line) for line in done.stdout.split()]
    assert len(files) >= 5
    assert all(file.is_relative_to(unpacked) for file in files)


def test_what_the_archive_holds(tmp_path: Path) -> None:
    run, _, facts = packaged(tmp_path)
    with ZipFile(archive_of(run)) as archive:
        names = set(archive.namelist())
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))
        lineage = json.loads(archive.read("lineage.json"))
        card = archive.read("model-card.md").decode()
    assert {"handler.py", "model.safetensors", "model.json", "blessing.json", "lineage.json", "model-card.md"} <= names
    assert manifest["createdOn"] == "01/01/1980 00:00:00", "the archiver's clock is not in the archive"
    assert manifest["model"]["modelVersion"] == facts["version"] == lineage["version"]
    assert lineage["weights"] == digest_file(run / "train" / "model.safetensors")
    assert facts["archive"] == digest_file(archive_of(run))
    assert "Not a medical device" in card
    assert "0.900 (0.800 to 0.950)" in card
    assert str(tmp_path) not in card


def test_without_a_blessing_it_is_refused_with_the_gates_reasons(tmp_path: Path) -> None:
    run, config = make_run(tmp_path)
    (run / "validate" / "blessing.json").unlink()
    with pytest.raises(Refused, match=r"blessing\.json: no quality blessing"):
        pack(run, config)
    assert not (run / "package").exists()


@pytest.mark.parametrize("step", ["train", "validate"])
def test_an_unfinished_step_is_named(tmp_path: Path, step: str) -> None:
    run, config = make_run(tmp_path)
    shutil.rmtree(run / step)
    with pytest.raises(Refused, match=f"spira-train {step}"):
        pack(run, config)


def test_a_blessing_of_other_weights_is_refused(tmp_path: Path) -> None:
    run, config = make_run(tmp_path, seed=1)
    other, _ = make_run(tmp_path, seed=2)
    shutil.rmtree(run / "train")
    shutil.copytree(other / "train", run / "train")
    with pytest.raises(Refused, match=r"blesses another model\.safetensors"):
        pack(run, config)


@pytest.mark.parametrize("name", ["train/model.safetensors", "train/model.json", "validate/blessing.json"])
def test_a_file_changed_behind_its_report_is_refused(tmp_path: Path, name: str) -> None:
    run, config = make_run(tmp_path)
    content = bytearray((run / name).read_bytes())
    content[-2] ^= 1
    (run / name).write_bytes(content)
    with pytest.raises(Refused, match="was changed since its step wrote it"):
        pack(run, config)


def test_a_golden_answer_changed_after_validation_is_refused(tmp_path: Path) -> None:
    run, config = make_run(tmp_path)
    file = run / "validate" / "golden" / "golden.json"
    file.write_text(file.read_text().replace("0.", "0.0", 1))
    with pytest.raises(Refused, match=r"golden\.json: was changed"):
        pack(run, config)


FULL = {
    "statistics.json": {
        "count": 3,
        "data": {"count": 3, "categorical": {"sex": {"F": 1, "M": 2}}, "numeric": {}},
        "scores": {"count": 0},
    },
    "drift.json": {"partition": "2026-11-05", "reference": None, "findings": []},
    "evidence.json": {"slices": {"sex: F": {"controls": 1, "patients": 0, "verdict": "too few"}}, "champion": None},
    "verdict.json": {"verdict": "blessed", "checks": [{"passed": True}] * 7, "unproven": ["sex: F: too few to judge"]},
}


def with_papers(folder: Path, **changed: object) -> tuple[Path, Config]:
    """A run whose `validate` left all that the card tells of."""
    run, config = make_run(folder)
    file = run / "validate" / "report.json"
    report = json.loads(file.read_text())
    for name, content in (FULL | changed).items():
        (run / "validate" / name).write_text(json.dumps(content))
        report["outputs"][name] = digest_file(run / "validate" / name)
    file.write_text(json.dumps(report))
    return run, config


def test_the_card_tells_what_the_gate_found(tmp_path: Path) -> None:
    run, config = with_papers(tmp_path)
    pack(run, config)
    card = (run / "package" / "model-card.md").read_text()
    assert "| Sex | F 1 (33 %), M 2 (67 %) |" in card
    assert "no earlier recordings to compare partition 2026-11-05 with" in card
    assert "| sex: F | 1 | 0 | **unproven**, too few |" in card
    assert "There was no champion yet" in card
    assert "holds 7 limits against these figures, and all of them were kept" in card
    assert "Not proven, for want of recordings:\n\n- sex: F: too few to judge" in card
    with ZipFile(archive_of(run)) as archive:
        assert archive.read("model-card.md").decode() == card
        assert archive.read("statistics.json") == (run / "validate" / "statistics.json").read_bytes()


def test_without_statistics_there_are_none_in_the_archive(tmp_path: Path) -> None:
    run, _, _ = packaged(tmp_path)
    with ZipFile(archive_of(run)) as archive:
        assert "statistics.json" not in archive.namelist()


@pytest.mark.parametrize("name", FULL)
def test_other_papers_are_another_version(tmp_path: Path, name: str) -> None:
    changed = {
        "statistics.json": FULL["statistics.json"] | {"scores": {"count": 1}},  # the card does not show these
        "drift.json": FULL["drift.json"] | {"partition": "2026-11-06"},
        "evidence.json": {"slices": {}, "champion": None},
        "verdict.json": {"verdict": "blessed", "checks": [], "unproven": []},
    }[name]
    runs = [with_papers(tmp_path / "a"), with_papers(tmp_path / "b", **{name: changed}), with_papers(tmp_path / "c")]
    first, other, again = (pack(*each)["summary"] for each in runs)
    assert first["version"] != other["version"]
    assert first["archive"] == again["archive"]


@pytest.mark.parametrize("name", FULL)
def test_a_paper_changed_after_validation_is_refused(tmp_path: Path, name: str) -> None:
    run, config = with_papers(tmp_path)
    (run / "validate" / name).write_text("{}")
    with pytest.raises(Refused, match="was changed since its step wrote it"):
        pack(run, config)
