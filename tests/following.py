"""Following runs of a real Airflow until they end."""

import time
from datetime import UTC, date, datetime, timedelta

from local.airflow_api import FINISHED, Airflow


def newest_day() -> date:
    """The day that the schedule takes up now: the day before, from 03:00 UTC on."""
    now = datetime.now(UTC)
    tick = now.replace(hour=3, minute=0, second=0, microsecond=0)
    if timedelta(0) < tick - now < timedelta(minutes=10):  # in the midst of the tests it would take up one more
        time.sleep((tick - now).total_seconds())
    return (datetime.now(UTC) - timedelta(hours=3, days=1)).date()


def until(held, patience: float = 900.0):
    """Wait for a true answer and return it; `patience` only ends a test that hangs."""
    since = time.monotonic()
    while not (answer := held()):
        assert time.monotonic() - since < patience, "waited in vain"
        time.sleep(0.5)
    return answer


def ended(airflow: Airflow, run_id: str) -> dict:
    """A run, once it has ended."""
    until(lambda: airflow.run(run_id)["state"] in FINISHED)
    return airflow.run(run_id)


def task_states(airflow: Airflow, run_id: str) -> dict[str, str]:
    """Task id -> state."""
    return {name: task["state"] for name, task in airflow.tasks(run_id).items()}
