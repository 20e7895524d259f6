"""The two ends of a step in Airflow's terms: the words it is run with, and how it ended.

Airflow appends this folder to the end of the import path: the module's name must not be that of any package.
"""

import json
import os
import signal
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any

from airflow.sdk import BaseOperatorLink
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

FRAME = ("step", "exit", "outcome", "message")  # keys of every last line; the others are the step's own facts
TAIL = 50  # lines kept to look for the last line of JSON: a library may still mutter on stderr after it


class Exit(IntEnum):
    """Exit codes of `spira-train`: the same numbers as `spira_train.outcome.Exit`, held equal by a test."""

    DONE = 0
    FAULT = 1
    BAD_INPUT = 10
    REFUSED = 20
    TRY_AGAIN = 75
    NOTHING_TO_DO = 99


class ReportLink(BaseOperatorLink):
    """The button on the task's page that opens the run's report in MLflow, as the user's browser reaches it."""

    name = "Report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Where the report is; empty where the step ended without one. Called in the worker when the task ends."""
        place = os.environ.get("SPIRA_MLFLOW_UI") or os.environ.get("MLFLOW_TRACKING_URI", "")
        report = getattr(operator, "report", "")
        return place.rstrip("/") + "/" + report if place and report else ""


def spread(words: Iterable[str]) -> list[str]:
    """The rendered words, one a line: a template may render to several words, or to none."""
    return [line for word in words for line in word.splitlines() if line]


def finish(task: Any, context: Any, code: int, lines: Iterable[str]) -> dict[str, Any]:
    """Settle the end of `task` (a step with `refusal_is_result` and `tell`) and publish its outlet assets."""
    result = settle(task.task_id, code, lines, task.refusal_is_result)
    task.report = str(result.get("report_link") or "")
    announce(task, context, result)
    return result


def settle(task_id: str, code: int, lines: Iterable[str], refusal_is_result: bool = False) -> dict[str, Any]:
    """Turn a step's end into Airflow's terms: its result (the XCom), or the exception with the step's own message."""
    result = last_result(lines)
    message = str(result.get("message") or "") or _without_words(task_id, code)
    if code == Exit.DONE and result:
        return result
    if code == Exit.REFUSED and refusal_is_result and result:
        return result
    if code == Exit.NOTHING_TO_DO:
        raise AirflowSkipException(message)
    if code in (Exit.BAD_INPUT, Exit.REFUSED):
        raise AirflowFailException(message)
    raise AirflowException(message)


def last_result(lines: Iterable[str]) -> dict[str, Any]:
    """The last line that is a JSON object, as a step prints it; empty where there is none."""
    for line in reversed(list(lines)):
        if line.startswith("{"):
            try:
                return dict(json.loads(line))
            except ValueError:
                continue
    return {}


def announce(task: Any, context: Any, result: Mapping[str, Any]) -> None:
    """Publish the task's outlet assets with the step's own facts, and with those of the tasks that `tell` names.

    A version that was only loaded beside the champion changed no asset: nothing is published, and nobody's DAG starts.
    """
    said = facts(result)
    if said.get("champion") not in (None, said.get("version")):
        task.outlets = []  # Airflow publishes those that the task has when it ends
    partition = context["params"].get("partition")
    for asset in task.outlets:
        event = context["outlet_events"][asset]
        event.extra = said | {name: facts(context["ti"].xcom_pull(name)) for name in task.tell}
        if partition:  # else Airflow stamps the run's own partition key on the event
            event.add_partitions(partition)


def facts(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a step says beyond the frame of its last line."""
    return dict(result.get("summary") or {name: value for name, value in result.items() if name not in FRAME})


def _without_words(task_id: str, code: int) -> str:
    number = -code if code < 0 else code - 128 if 128 < code < 160 else 0
    if number:
        hint = "; out of memory?" if number == signal.SIGKILL else ""
        return f"{task_id}: killed by signal {number}{hint} (see the log above)"
    return f"{task_id}: ended with exit code {code} and no line of JSON (see the log above)"
