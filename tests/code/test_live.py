"""The live accuracy: counted, written by the app, read by status and report."""

import io
from collections import Counter

import pytest
from rich.console import Console

from serve.app import live as app_live
from spira_train import live, status
from spira_train.outcome import BadInput


def counts() -> app_live.Accuracy:
    known = {("positive", "patient"): 8, ("negative", "patient"): 2, ("inconclusive", "patient"): 3}
    return app_live.counted(Counter(known | {("negative", "control"): 9, ("positive", "control"): 1}))


def test_the_shares_are_of_conclusive_answers():
    one = counts()
    assert (one.n, one.patients, one.controls, one.inconclusive, one.right) == (23, 13, 10, 3, 17)
    assert one.accuracy is not None
    assert one.accuracy.value == 0.85
    assert (one.sensitivity, one.specificity) == (app_live.wilson(8, 10), app_live.wilson(9, 10))
    assert app_live.counted(Counter({("inconclusive", "patient"): 4})).accuracy is None


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 5, 0, 0.4345), (10, 10, 0.7225, 1), (50, 100, 0.4038, 0.5962)],
)
def test_wilsons_interval(right, n, low, high):
    found = app_live.wilson(right, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_what_the_app_writes_is_what_status_shows(tmp_path):
    file = tmp_path / "live.json"
    assert live.read(file) == {}
    app_live.write(str(file), {"2026-11-05-7a7d4e72": counts()})
    facts = {"away": [], "inference": "", "live": live.read(file)}
    text = io.StringIO()
    status.show(facts, Console(file=text, width=200))
    assert "2026-11-05-7a7d4e72: right on 85% (64 to 95) of 20 conclusive answers" in text.getvalue()
    assert "3 inconclusive" in text.getvalue()


@pytest.mark.parametrize("content", ["{", '{"v": {"n": -1, "inconclusive": 0}}', '{"v": 3}'])
def test_a_file_that_the_app_does_not_write_is_named(tmp_path, content):
    file = tmp_path / "live.json"
    file.write_text(content)
    with pytest.raises(BadInput, match=r"live\.json"):
        live.read(file)


def test_app_and_collection_import_neither_torch_nor_mlflow_nor_airflow():
    import subprocess
    import sys

    parts = ("serve.app.service", "serve.app.worker", "serve.app.__main__", "collect.service", "access.__main__")
    block = (
        "import sys\nfor name in ('torch', 'torchaudio', 'mlflow', 'airflow', 'pyarrow'): sys.modules[name] = None\n"
    )
    code = block + "".join(f"import {part}\n" for part in parts)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
