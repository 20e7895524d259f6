"""Fingerprints follow what a result depends on; a finished step is never done twice."""

import json

import pytest

from spira_train import step
from spira_train.store import local_lake


def identity(**changes):
    base = {"module": "metrics", "config": {"a": 1}, "inputs": {"x": "1"}, "libraries": ("numpy",)}
    return step.fingerprint("test", **(base | changes))


def test_fingerprint_changes_with_config_inputs_code_and_libraries():
    assert identity() == identity()
    others = [
        identity(config={"a": 2}),
        identity(inputs={"x": "2"}),
        identity(module="rng"),
        identity(libraries=("numpy", "torch")),
    ]
    assert len({identity(), *others}) == 5


def test_code_digest_follows_imports(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("from spira_train.b import thing\n")
    (tmp_path / "b.py").write_text("thing = 1\n")
    monkeypatch.setattr(step, "PACKAGE", tmp_path)
    step.code_digest.cache_clear()
    before = step.code_digest("a")
    (tmp_path / "b.py").write_text("thing = 2\n")
    step.code_digest.cache_clear()
    assert step.code_digest("a") != before
    step.code_digest.cache_clear()


def test_finished_work_is_not_done_again(tmp_path):
    calls = []

    def work(folder):
        calls.append(1)
        (folder / "out").write_text("x")
        return {"count": 1}

    place = local_lake(tmp_path / "out")
    first = step.perform("test", "f1", *place, work, {})
    again = step.perform("test", "f1", *place, work, {})
    assert (first["cached"], again["cached"], len(calls)) == (False, True, 1)
    assert first["outputs"] == again["outputs"]
    step.perform("test", "f2", *place, work, {})
    assert len(calls) == 2


def test_damaged_report_means_the_work_is_done_again(tmp_path):
    place = local_lake(tmp_path / "out")
    step.perform("test", "f1", *place, lambda folder: {}, {})
    (tmp_path / "out" / "report.json").write_text("{")
    assert step.perform("test", "f1", *place, lambda folder: {}, {})["cached"] is False


def test_last_line_is_one_line_of_json(capsys):
    step.emit("test", message="two\nlines", run="x")
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "step": "test", "exit": 0, "outcome": "done", "message": "two\nlines", "run": "x",
    }  # fmt: skip


def test_not_a_number_never_gets_into_a_report(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        step.perform("test", "f", *local_lake(tmp_path / "out"), lambda folder: {"auc": float("nan")}, {})
    assert not (tmp_path / "out").exists()
