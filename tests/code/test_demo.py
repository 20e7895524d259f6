"""Which days the demonstration runs: those that were simulated, in a lake where people may have collected as well."""

from datetime import UTC, datetime

import pytest

from local.demo import simulated_days
from spira_train.store import Lake


def landed(lake, *days):
    for day in days:
        (lake / "landing" / day).mkdir(parents=True)


def test_a_day_that_is_being_collected_is_left_out(tmp_path):
    today = datetime.now(UTC).date().isoformat()
    landed(tmp_path, "2020-05-11", "2020-05-12", today)
    (tmp_path / "collection" / today / "events").mkdir(parents=True)
    assert simulated_days(Lake(str(tmp_path))) == ["2020-05-11", "2020-05-12"]


def test_a_collected_day_that_would_train_is_told(tmp_path):
    landed(tmp_path, "2020-05-11", "2026-11-24")
    (tmp_path / "collection/2026-11-24/events").mkdir(parents=True)
    (tmp_path / "collection/2026-11-24/closed.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"2026-11-24 was collected.*a lake of its own: SPIRA_LAKE="):
        simulated_days(Lake(str(tmp_path)))
