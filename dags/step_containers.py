"""The containers of steps on an engine: known by their labels, removed where nobody waits for them any more."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from docker import APIClient

# A task in one of these is over: nobody will come back for its container. Any other may still be taken up.
OVER = ("success", "failed", "skipped", "upstream_failed", "removed")
GRACE = timedelta(minutes=1)  # the worker of a task that has just ended removes its container itself


def labels_of(ti: Any, stack: str, work: list[str]) -> dict[str, str]:
    """By these a container is found again. work: image and command, the same for tries that do the same."""
    return {
        "spira.stack": stack,
        "spira.dag": ti.dag_id,
        "spira.run": ti.run_id,
        "spira.task": ti.task_id,
        "spira.try": str(ti.try_number),
        "spira.work": hashlib.sha256(json.dumps(work).encode()).hexdigest()[:16],
    }


def short(container: Mapping[str, Any]) -> str:
    """A container's id as people write it."""
    return str(container["Id"])[:12]


def known(engine: APIClient, stack: str) -> list[dict[str, Any]]:
    """All step containers of `stack`, running or not."""
    return list(engine.containers(all=True, filters={"label": ["spira.task", f"spira.stack={stack}"]}))


def orphans(containers: list[dict[str, Any]], ti: Any, now: datetime | None = None) -> list[dict[str, Any]]:
    """Those whose task has ended, and not just now. ti: a running task instance, through which Airflow is asked."""
    states: dict[tuple[str, str], Mapping[str, str | None]] = {}
    found = []
    for container in containers:
        labels = container["Labels"]
        run = (labels["spira.dag"], labels["spira.run"])
        if run not in states:
            states[run] = ti.get_task_states(dag_id=run[0], run_ids=[run[1]]).get(run[1], {})
        age = (now or datetime.now(UTC)) - datetime.fromtimestamp(container["Created"], UTC)
        # A run that Airflow no longer knows has no states at all; a task that waits to be scheduled has the state None.
        state = states[run].get(labels["spira.task"], "removed")
        if state in OVER and age > GRACE:
            found.append(container)
    return found
