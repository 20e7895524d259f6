from pathlib import Path

import fsspec
import pytest

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
