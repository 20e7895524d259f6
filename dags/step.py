"""One step of `spira-train` as one Airflow task: where it runs, and what it may touch.

`SPIRA_RUNTIME` chooses: `docker` runs each step in a container of `SPIRA_IMAGE`, `process` runs the same command
line (`SPIRA_TRAIN`) in the model environment of this machine. The DAG reads the same for both.

All settings are environment variables of the Airflow services; `settings` lists them with their defaults.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException
from container_step import ContainerStep
from docker.types import Mount
from process_step import ProcessStep
from step_outcome import ReportLink

DEFAULTS = {
    "owner": "spira",
    "retries": 2,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=2),
}

# What a step is told of its surroundings. Nothing else of the worker's environment reaches it: no Airflow secrets.
ADDRESSES = ("MLFLOW_TRACKING_URI", "SPIRA_INFERENCE", "SPIRA_MANAGEMENT")
PLACES = {"SPIRA_LAKE": "/lake", "SPIRA_RUNS": "/runs", "SPIRA_MODELS": "/models", "SPIRA_KEYS": "/keys"}
PLACES |= {"SPIRA_SIGNING_KEY": "/signing", "SPIRA_VERIFY_KEY": "/trust", "SPIRA_AUDIT": "/audit"}
PLACES |= {"SPIRA_LIVE": "/live"}
# Where a step is told of a file in a place, not of the place.
FILES = {"SPIRA_KEYS": "key_file.json", "SPIRA_SIGNING_KEY": "signing.key", "SPIRA_VERIFY_KEY": "signing.pub"}
FILES |= {"SPIRA_LIVE": "live.json"}
KEEP = "SPIRA_KEEP"  # how many versions keep their archives
PROCESS_ONLY = (KEEP, "SPIRA_STACK", "PATH", "HOME", "LANG", "TMPDIR", "JAVA_HOME")
Right = Literal["read", "write"]


@dataclass(frozen=True)
class Reach:
    """What the container of a step may touch: places (`read` or `write`), and whether it may use the network."""

    lake: Right | None = None
    runs: Right | None = "write"
    models: Right | None = None
    keys: Right | None = None
    signing_key: Right | None = None
    verify_key: Right | None = None
    audit: Right | None = None
    live: Right | None = None
    network: bool = False
    keep: bool = False  # whether it lets old archives go, and is told how many stay


REACH = {
    "setup": Reach(lake="read"),
    "extract": Reach(lake="write", runs="read"),
    "features": Reach(lake="write", runs="read"),
    "train": Reach(lake="read", network=True),  # MLflow's live curves
    "validate": Reach(lake="read", live="read", network=True),  # MLflow's champion, and how right it is with people
    "package": Reach(signing_key="read"),  # its sandbox listens on the container's own loopback
    "register": Reach(models="write", keys="read", verify_key="read", network=True, keep=True),
    "reject": Reach(runs="read", network=True),
    "verify": Reach(models="write", keys="read", network=True),  # holds the model store while it rolls back
    "rollback": Reach(runs=None, models="write", keys="read", network=True),
    "watch": Reach(lake="read", models="read", audit="read", network=True),
    "collected": Reach(lake="write", runs=None, network=True),  # MLflow's versions, to mark them
    "reconcile": Reach(runs=None, models="write", keys="read", network=True),
}


def step(
    task_id: str,
    *words: str,
    gpu: bool = False,
    refusal_is_result: bool = False,
    tell: tuple[str, ...] = (),
    report: bool = False,
    **kwargs: Any,
) -> BaseOperator:
    """The task `task_id`, which runs `spira-train WORDS`; templated, a rendered line is a word.

    gpu: wants the GPU where `SPIRA_GPUS` grants one. refusal_is_result: a refusal by the step ends the task well
    (its result says `refused`) instead of failing it. tell: earlier tasks whose facts the outlet assets carry as well.
    report: its page gets a button to the report. Other arguments are those of every Airflow operator.
    Raises `ValueError` where a setting is wrong, which the UI shows as an import error of the DAG.
    """
    chosen = settings(os.environ)
    granted = gpu and chosen["gpus"] != "none"
    if granted:
        kwargs["pool"] = "gpu"
    shared = {"task_id": task_id, "words": list(words), "refusal_is_result": refusal_is_result, "tell": tell} | kwargs
    links = (ReportLink(),) if report else ()
    reach = REACH[words[0]]
    if chosen["runtime"] == "process":
        places = (name for name in PLACES if name in _rights(reach) or not name.endswith("_KEY"))
        environment = {name: os.environ[name] for name in (*places, *ADDRESSES, *PROCESS_ONLY) if name in os.environ}
        # Airflow's own environment comes first on the worker's path; a step must find its own.
        environment["PATH"] = f"{Path(chosen['executable']).parent}:{environment.get('PATH', '/usr/bin:/bin')}"
        task: BaseOperator = ProcessStep(executable=chosen["executable"], environment=environment, **shared)
        task.operator_extra_links = links
        return task
    task = ContainerStep(
        image=chosen["image"],
        environment=_told(reach),
        mounts=list(_mounts(reach, chosen["volumes"])),
        user=chosen["user"],
        network_mode=chosen["network"] if reach.network else "none",
        mem_limit=chosen["memory"],
        cpus=chosen["cpus"],
        stack=chosen["stack"],
        gpus=chosen["gpus"] if granted else "none",
        **shared,
    )
    task.operator_extra_links = links
    return task


def settings(env: Mapping[str, str]) -> dict[str, Any]:
    """The settings of the runtime from the environment, checked; raises `ValueError` naming the variable.

    A place (`SPIRA_LAKE_VOLUME`, ...) is a named volume of the engine, or a folder of its host: never a path of the
    machine, or the container, that Airflow itself runs in.
    """
    runtime, gpus = env.get("SPIRA_RUNTIME", "docker"), env.get("SPIRA_GPUS", "none") or "none"
    user, memory, cpus = env.get("SPIRA_USER", "10001:10001"), env.get("SPIRA_MEMORY", "8g"), env.get("SPIRA_CPUS", "2")
    if runtime not in ("docker", "process"):
        raise ValueError(f"SPIRA_RUNTIME is {runtime!r}; allowed: docker, process")
    if gpus not in ("none", "auto", "all") and not (gpus.isdigit() and int(gpus) > 0):
        raise ValueError(f"SPIRA_GPUS is {gpus!r}; allowed: none, auto, all, or how many")
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", user):
        raise ValueError(f"SPIRA_USER is {user!r}; allowed: uid:gid in numbers, neither of them root's 0")
    if not re.fullmatch(r"[1-9]\d*[bkmg]?", memory):
        raise ValueError(f"SPIRA_MEMORY is {memory!r}; allowed: a number with k, m or g, such as 8g")
    if not re.fullmatch(r"\d+(\.\d+)?", cpus) or float(cpus) <= 0:
        raise ValueError(f"SPIRA_CPUS is {cpus!r}; allowed: how many, such as 2 or 1.5")
    if (keep := env.get(KEEP)) and not (keep.isdigit() and int(keep) >= 2):
        raise ValueError(f"{KEEP} is {keep!r}; allowed: how many versions keep their archives, at least 2")
    hours = env.get("SPIRA_APPROVAL_HOURS") or "72"
    if not re.fullmatch(r"\d+(\.\d+)?", hours) or float(hours) <= 0:
        raise ValueError(f"SPIRA_APPROVAL_HOURS is {hours!r}; allowed: how many, such as 72 or 0.5")
    return {
        "runtime": runtime,
        "approval_hours": float(hours),
        "gpus": gpus,
        "executable": env.get("SPIRA_TRAIN", "spira-train"),
        "image": env.get("SPIRA_IMAGE", "spira_train:latest"),
        "user": user,
        "network": env.get("SPIRA_NETWORK", "spira-steps"),
        "memory": memory,
        "cpus": float(cpus),
        "stack": env.get("SPIRA_STACK_NAME", "spira"),
        "volumes": {name: env.get(f"{name}_VOLUME", name.lower().replace("_", "-")) for name in PLACES},
    }


def partition_of(params: Mapping[str, Any], partition_key: str | None) -> str:
    """The partition of a run: the param where it is given, else the scheduler's key; never silently none."""
    chosen = params.get("partition") or partition_key
    if not chosen:
        raise AirflowFailException(
            "this run has no partition: trigger it with the param `partition` (YYYY-MM-DD) or with a partition key"
        )
    return str(chosen)


def _rights(reach: Reach) -> dict[str, Right]:
    """Place -> what the step may do there."""
    rights = {name: getattr(reach, name.removeprefix("SPIRA_").lower()) for name in PLACES}
    return {name: right for name, right in rights.items() if right}


def _told(reach: Reach) -> dict[str, str]:
    places = {n: f"{PLACES[n]}/{FILES[n]}" if n in FILES else PLACES[n] for n in _rights(reach)}
    names = (*(ADDRESSES if reach.network else ()), *((KEEP,) if reach.keep else ()))
    return places | {name: os.environ[name] for name in names if os.environ.get(name)}


def _mounts(reach: Reach, volumes: Mapping[str, str]) -> list[Mount]:
    return [
        Mount(
            PLACES[name],
            volumes[name],
            type="bind" if volumes[name].startswith("/") else "volume",
            read_only=right == "read",
        )
        for name, right in _rights(reach).items()
    ]
