"""The infra blessing from a real TorchServe of its own."""

import json
from pathlib import Path
from zipfile import ZipFile

import pytest
from runs import archive_of, make_run, packaged

from serve import sandbox
from spira_train import package
from spira_train.outcome import BadInput, Refused
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


def test_packaging_gives_the_blessing_and_leaves_nothing(tmp_path: Path) -> None:
    run, config = make_run(tmp_path)
    before = servers()
    package.run(run=run, config=config)
    blessing = json.loads((run / "package" / "infra.json").read_text())
    assert blessing["blessing"] == "infra"
    assert blessing["archive"] == digest_file(archive_of(run))
    assert servers() <= before


def test_an_archive_that_answers_otherwise_is_refused(tmp_path: Path) -> None:
    (first, _, facts), (other, _, _) = packaged(tmp_path, 1), packaged(tmp_path, 2)
    with pytest.raises(Refused, match="no infra blessing from the sandbox TorchServe: golden recording"):
        sandbox.bless(archive_of(first), facts["version"], other / "validate" / "golden")


def test_an_archive_that_does_not_load_is_refused(tmp_path: Path) -> None:
    run, _, facts = packaged(tmp_path)
    broken = tmp_path / "broken.mar"
    with ZipFile(archive_of(run)) as source, ZipFile(broken, "w") as target:
        for name in source.namelist():
            target.writestr(name, b"" if name == "spira_train/inference.py" else source.read(name))
    with pytest.raises(Refused, match="did not get READY"):
        sandbox.bless(broken, facts["version"], run / "validate" / "golden")


def test_a_machine_without_java_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _, facts = packaged(tmp_path)
    monkeypatch.setattr(sandbox.sys, "executable", str(_without_java(tmp_path)))
    with pytest.raises(BadInput, match="Java: TorchServe needs 17"):
        sandbox.bless(archive_of(run), facts["version"], run / "validate" / "golden")


def _without_java(folder: Path) -> Path:
    """A stand-in for Python whose `serve.launch` finds no Java."""
    script = folder / "python"
    script.write_text('#!/bin/sh\necho "Java: TorchServe needs 17 or newer; install one" >&2\nexit 10\n')
    script.chmod(0o755)
    return script
