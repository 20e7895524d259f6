from pathlib import Path

import fsspec
import pytest
from collecting import service

from spira_train.store import Lake


@pytest.fixture(params=["file", "memory"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    """The same behaviour on a disk and on an object store."""
    if request.param == "file":
        return Lake(str(tmp_path / "lake"))
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]
    return Lake("memory://lake")


@pytest.fixture
def disk(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):
    """A real service for the tests of a module."""
    running = service(tmp_path_factory.mktemp("collect"))
    yield running
    assert running.stop() == 0
