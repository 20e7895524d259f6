"""Airflow's REST API, as far as the demo and the tests need it."""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import requests

DAG_ID = "spira_training"
FINISHED = ("success", "failed")
TRIES, PAUSE_SECONDS = 5, 3.0


class Airflow:
    """A logged-in session with one Airflow; every call raises `requests.HTTPError` with the server's own reason."""

    def __init__(self, base: str, token: str) -> None:
        self.base = base
        self.http = requests.Session()
        self.http.headers["Authorization"] = f"Bearer {token}"

    @classmethod
    def login(cls, base: str, user: str, password: str) -> "Airflow":
        answer = requests.post(f"{base}/auth/token", json={"username": user, "password": password}, timeout=20)
        answer.raise_for_status()
        return cls(base, answer.json()["access_token"])

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: Any) -> dict[str, Any]:
        """One request to /api/v2; the decoded answer.

        On SQLite a busy Airflow may answer that its database is locked: what may be asked twice is asked again.
        """
        for _ in range(TRIES):
            answer = self.http.request(method, f"{self.base}/api/v2/{path}", json=body, params=query, timeout=30)
            if method == "POST" or answer.status_code != 500 or "Database error" not in answer.text:
                break
            time.sleep(PAUSE_SECONDS)
        if not answer.ok:
            raise requests.HTTPError(f"{method} {path}: {answer.status_code} {answer.text}", response=answer)
        return dict(answer.json()) if answer.content else {}

    def knows(self, dag_id: str = DAG_ID) -> bool:
        """Whether the DAG has been parsed and can be run."""
        return self.http.get(f"{self.base}/api/v2/dags/{dag_id}", timeout=20).ok

    def import_errors(self) -> list[str]:
        return [error["stack_trace"] for error in self.call("GET", "importErrors")["import_errors"]]

    def pause(self, paused: bool, dag_id: str = DAG_ID) -> None:
        self.call("PATCH", f"dags/{dag_id}", {"is_paused": paused})

    def pool(self, name: str, slots: int, description: str) -> None:
        """Make sure that a pool exists."""
        if not self.http.get(f"{self.base}/api/v2/pools/{name}", timeout=20).ok:
            self.call("POST", "pools", {"name": name, "slots": slots, "description": description})

    def trigger(self, conf: Mapping[str, Any], partition_key: str | None = None, dag_id: str = DAG_ID) -> str:
        """A manual run, as the UI's form starts it; returns its id."""
        body = {"logical_date": None, "conf": dict(conf), "partition_key": partition_key}
        return str(self.call("POST", f"dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def backfill(
        self, first: str, last: str, conf: Mapping[str, Any], again: bool = False, active: int = 1, dag_id: str = DAG_ID
    ) -> int:
        """Run the partitions `first` to `last` (days, inclusive); `again`: finished ones too. The backfill's id."""
        body = {
            "dag_id": dag_id,
            "from_date": f"{first}T00:00:00Z",
            "to_date": f"{last}T23:59:59Z",
            "dag_run_conf": dict(conf),
            "reprocess_behavior": "completed" if again else "none",
            "max_active_runs": active,
        }
        return int(self.call("POST", "backfills", body)["id"])

    def backfill_runs(self, backfill: int, dag_id: str = DAG_ID) -> dict[str, dict[str, Any]]:
        """Partition -> run of one backfill; runs of earlier ones stand beside them under the same partitions."""
        since = datetime.fromisoformat(self.call("GET", f"backfills/{backfill}")["created_at"])
        runs = self.runs(dag_id, run_type="backfill")
        return {run["partition_key"]: run for run in runs if datetime.fromisoformat(run["queued_at"]) >= since}

    def cancel_backfills(self, dag_id: str = DAG_ID) -> None:
        """End the backfills that are still at work, and their runs; there can be only one."""
        for backfill in self.call("GET", "backfills", dag_id=dag_id)["backfills"]:
            if not backfill["completed_at"]:
                self.call("PUT", f"backfills/{backfill['id']}/cancel")
        for run in self.runs(dag_id, run_type="backfill"):
            if run["state"] not in FINISHED:
                self.call("PATCH", f"dags/{dag_id}/dagRuns/{run['dag_run_id']}", {"state": "failed"})

    def runs(self, dag_id: str = DAG_ID, **query: Any) -> list[dict[str, Any]]:
        """The DAG's runs, oldest first; `run_type="backfill"` and the like narrow it down."""
        found = self.call("GET", f"dags/{dag_id}/dagRuns", limit=100, order_by="run_after", **query)
        return list(found["dag_runs"])

    def run(self, run_id: str, dag_id: str = DAG_ID) -> dict[str, Any]:
        return self.call("GET", f"dags/{dag_id}/dagRuns/{run_id}")

    def tasks(self, run_id: str, dag_id: str = DAG_ID) -> dict[str, dict[str, Any]]:
        """Task id -> task instance of one run."""
        found = self.call("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances", limit=100)
        return {task["task_id"]: task for task in found["task_instances"]}

    def result(self, run_id: str, task_id: str, dag_id: str = DAG_ID) -> Any:
        """What a task returned (its XCom)."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        return self.call("GET", path, deserialize=True)["value"]

    def log(self, run_id: str, task_id: str, attempt: int = 1, dag_id: str = DAG_ID) -> str:
        """A task's log as plain lines."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{attempt}"
        lines = self.call("GET", path, full_content=True)["content"]
        return "\n".join(_readable(line) for line in lines)


def _readable(line: Any) -> str:
    if not isinstance(line, dict):
        return str(line)
    errors = [f"{error['exc_type']}: {error['exc_value']}" for error in line.get("error_detail") or ()]
    return "\n".join([str(line["event"]), *errors])
