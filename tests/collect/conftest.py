import pytest
from collecting import service


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):
    """A real service for the tests of a module."""
    running = service(tmp_path_factory.mktemp("collect"))
    yield running
    assert running.stop() == 0
