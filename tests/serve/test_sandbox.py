"""The infra blessing from a real TorchServe of its own."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from planted import planted
from registering import Made, Place, champion_of, go, loaded
from runs import archive_of, make_run, packaged, wav
from servers import Running

from serve import sandbox
from serve import torchserve as ts
from spira_train import gate, package
from spira_train.config import CONFIG_DIR
from spira_train.gate import Serving
from spira_train.outcome import BadInput, Refused
from spira_train.registry import Registry
from spira_train.store import digest_file

pytestmark = [pytest.mark.torchserve, pytest.mark.slow]


def servers() -> set[str]:
    """Command lines of living processes that belong to a sandbox."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "spira-sandbox-" in line:
            found.add(line)
    return found


def test_packaging_gives_the_blessing_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, config = make_run(tmp_path)
    before = servers()
    package.run(run=run, config=config)
    blessing = json.loads((run / "package" / "infra.json").read_text())
    assert blessing["blessing"] == "infra"
    assert blessing["archive"] == digest_file(archive_of(run))
    assert blessing["limits"] == Serving().model_dump()
    assert "ms an answer" in capsys.readouterr().err
    assert servers() <= before


def test_the_gate_says_what_is_asked_and_other_limits_have_the_archive_tried_again(tmp_path: Path) -> None:
    assert gate.read(CONFIG_DIR / "gate.yaml").serving == Serving()
    run, config = make_run(tmp_path)
    asked = []

    def bless(archive: Path, version: str, golden: Path, limits: Serving) -> dict:
        asked.append(limits.seconds)
        return {"blessing": "infra", "archive": digest_file(archive)}

    for seconds in (10, 10, 5):
        package.run(run=run, config=config, sandbox=bless, limits=Serving(seconds=seconds))
    assert asked == [10, 5]


def test_packaging_refuses_a_handler_that_hangs_and_leaves_no_process_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = planted(tmp_path, monkeypatch, "hangs")[0].parent / "handler.py"
    monkeypatch.setattr(package, "HANDLER", handler)
    run, config = make_run(tmp_path / "again")
    before = servers()
    with pytest.raises(Refused, match=r"no infra blessing from the sandbox TorchServe: .* no answer within 2 s"):
        package.run(run=run, config=config, limits=Serving(seconds=2))
    assert not (run / "package").exists()
    assert servers() <= before


LIMITS = {"hangs": Serving(seconds=2), "slow": Serving(milliseconds=400)}


# Handler -> the reason that is given.
REASONS = {
    "raises at load": r"did not get READY .*\(its log: RuntimeError: planted at load\)",
    "raises at predict": r"golden recording 00\.wav: .* answered 503.*RuntimeError: planted at predict",
    "hangs": r"golden recording 00\.wav: .* gave no answer within 2 s",
    "returns NaN": r"golden recording 00\.wav: .* gives nan, not a probability",
    "NaN for noise alone": "short recordings in a row: .* gives nan, not a probability",
    "leaks memory": r"its process grew by \d+ MiB over 200 short recordings, at most 32 MiB is allowed",
    "dies under load": "short recordings in a row: one got 500: Worker died",
    "slow": r"the median answer to a golden recording took \d+ ms, at most 400 ms is allowed",
    "answers broken input": r"broken input \(b''\) got 200, not a 4xx",
    "answers no JSON": "the answer is not JSON with probability",
}


@pytest.mark.parametrize("name", REASONS)
def test_a_handler_that_misbehaves_is_refused_with_the_reason(
    torchserve: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run, _, facts = planted(tmp_path, monkeypatch, name)
    server = replace(torchserve.server, name=name.replace(" ", "-"))
    golden, limits = run / "validate" / "golden", LIMITS.get(name, Serving())
    with pytest.raises(Refused, match=f"no infra blessing from the sandbox TorchServe: .*{REASONS[name]}"):
        sandbox.examine(server, archive_of(run), facts["version"], golden, torchserve.store, limits)
    ts.unregister(server, facts["version"])


def test_an_archive_that_answers_otherwise_is_refused(torchserve: Running, tmp_path: Path) -> None:
    (first, _, facts), (other, _, _) = packaged(tmp_path, 1), packaged(tmp_path, 2)
    server, golden = replace(torchserve.server, name="otherwise"), other / "validate" / "golden"
    with pytest.raises(Refused, match="no infra blessing from the sandbox TorchServe: golden recording"):
        sandbox.examine(server, archive_of(first), facts["version"], golden, torchserve.store, Serving())


def test_what_passed_the_sandbox_by_mistake_is_not_promoted_and_the_champion_answers_throughout(
    place: Place, made: list[Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("raises at load", "raises at predict", "hangs", "returns NaN", "answers no JSON")
    bad = [planted(tmp_path / str(n), monkeypatch, name, seed=9) for n, name in enumerate(names)]
    go(made[0], place)
    champion, (server, store, mlflow) = made[0][2]["version"], place
    done, answers, content = threading.Event(), [], wav(1)

    def ask() -> None:
        while not done.is_set():
            answers.append(ts.predict(server, content))

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            for name, each in zip(names, bad, strict=True):
                with pytest.raises(Refused):
                    go(each, (replace(server, seconds=2), store, mlflow))
                assert champion_of(place) == (champion, champion, None), name
                assert loaded(place) == {champion}, name
        finally:
            done.set()
        for each in asking:
            each.result()
    assert len(answers) > 100
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["model"]["version"] for answer in answers} == {champion}
    promoted = {v.tags["version"] for v in Registry(mlflow).versions().values() if v.tags.get("promoted") == "true"}
    assert promoted == {champion}


def test_a_machine_without_java_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _, facts = packaged(tmp_path)
    monkeypatch.setattr(sandbox.sys, "executable", str(_without_java(tmp_path)))
    with pytest.raises(BadInput, match="Java: TorchServe needs 17"):
        sandbox.bless(archive_of(run), facts["version"], run / "validate" / "golden", Serving())


def _without_java(folder: Path) -> Path:
    """A stand-in for Python whose `serve.launch` finds no Java."""
    script = folder / "python"
    script.write_text('#!/bin/sh\necho "Java: TorchServe needs 17 or newer; install one" >&2\nexit 10\n')
    script.chmod(0o755)
    return script
