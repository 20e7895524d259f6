"""What needs an engine, or what stands before one, is tested in the orchestration environment, as `tests/dags`."""

import sys
from pathlib import Path

from no_skips import pytest_runtest_makereport  # noqa: F401 - a hook

sys.path.append(str(Path(__file__).resolve().parents[2] / "images/engine_proxy"))
