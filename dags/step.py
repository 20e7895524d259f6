"""One step of `spira-train` as one Airflow task: where it runs, and what its exit code means to Airflow.

`SPIRA_RUNTIME` chooses: `docker` runs each step in a container of `SPIRA_IMAGE`, `process` runs the same command
line (`SPIRA_TRAIN`) in the model environment of this machine. The DAG reads the same for both.

All settings are environment variables of the Airflow services; `settings` lists them with their defaults.
"""

import ctypes
import os
import re
import shlex
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.docker.exceptions import DockerContainerFailedException
from airflow.providers.docker.operators.docker import DockerOperator
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException
from docker.types import DeviceRequest, Mount
from step_outcome import Exit, facts, settle

TAIL = 50  # lines kept to look for the last line of JSON: a library may still mutter on stderr after it
STOP_SECONDS = 10.0
GIB = 1 << 30

# What a step is told of its surroundings. Nothing else of the worker's environment reaches it: no Airflow secrets.
ADDRESSES = ("MLFLOW_TRACKING_URI", "SPIRA_INFERENCE", "SPIRA_MANAGEMENT")
PLACES = {"SPIRA_LAKE": "/lake", "SPIRA_RUNS": "/runs", "SPIRA_MODELS": "/models"}
PROCESS_ONLY = ("SPIRA_KEYS", "SPIRA_STACK", "PATH", "HOME", "LANG", "TMPDIR", "JAVA_HOME")


def step(
    task_id: str,
    *words: str,
    gpu: bool = False,
    refusal_is_result: bool = False,
    tell: tuple[str, ...] = (),
    **kwargs: Any,
) -> BaseOperator:
    """The task `task_id`, which runs `spira-train WORDS`; templated, a rendered line is a word.

    gpu: wants the GPU where `SPIRA_GPUS` grants one. refusal_is_result: a refusal by the step ends the task well
    (its result says `refused`) instead of failing it. tell: earlier tasks whose facts the outlet assets carry as well.
    Other arguments are those of every Airflow operator.
    Raises `ValueError` where a setting is wrong, which the UI shows as an import error of the DAG.
    """
    chosen = settings(os.environ)
    granted = gpu and chosen["gpus"] != "none"
    if granted:
        kwargs["pool"] = "gpu"
    shared = {"task_id": task_id, "words": list(words), "refusal_is_result": refusal_is_result, "tell": tell} | kwargs
    if chosen["runtime"] == "process":
        environment = {name: os.environ[name] for name in (*PLACES, *ADDRESSES, *PROCESS_ONLY) if name in os.environ}
        # Airflow's own environment comes first on the worker's path; a step must find its own.
        environment["PATH"] = f"{Path(chosen['executable']).parent}:{environment.get('PATH', '/usr/bin:/bin')}"
        return ProcessStep(executable=chosen["executable"], environment=environment, **shared)
    return ContainerStep(
        image=chosen["image"],
        environment={**PLACES, "SPIRA_KEYS": "/keys/key_file.json"}
        | {name: os.environ[name] for name in ADDRESSES if name in os.environ},
        mounts=[
            *(Mount(target, chosen["volumes"][name], "volume") for name, target in PLACES.items()),
            Mount("/keys", chosen["volumes"]["SPIRA_KEYS"], "volume", read_only=True),
        ],
        user=chosen["user"],
        network_mode=chosen["network"],
        mem_limit=chosen["memory"],
        shm_size=GIB,  # docker's 64 MB kill DataLoader workers
        device_requests=[_devices(chosen["gpus"])] if granted else None,
        auto_remove="force",
        mount_tmp_dir=False,
        xcom_all=True,
        **shared,
    )


def settings(env: Mapping[str, str]) -> dict[str, Any]:
    """The settings of the runtime from the environment, checked; raises `ValueError` naming the variable."""
    runtime, gpus = env.get("SPIRA_RUNTIME", "docker"), env.get("SPIRA_GPUS", "none") or "none"
    if runtime not in ("docker", "process"):
        raise ValueError(f"SPIRA_RUNTIME is {runtime!r}; allowed: docker, process")
    if gpus not in ("none", "all") and not (gpus.isdigit() and int(gpus) > 0):
        raise ValueError(f"SPIRA_GPUS is {gpus!r}; allowed: none, all, or how many")
    return {
        "runtime": runtime,
        "gpus": gpus,
        "executable": env.get("SPIRA_TRAIN", "spira-train"),
        "image": env.get("SPIRA_IMAGE", "spira_train:latest"),
        "user": env.get("SPIRA_USER", "10001:10001"),
        "network": env.get("SPIRA_NETWORK", "spira"),
        "memory": env.get("SPIRA_MEMORY", "8g"),
        "volumes": {n: env.get(f"{n}_VOLUME", n.lower().replace("_", "-")) for n in (*PLACES, "SPIRA_KEYS")},
    }


def spread(words: Iterable[str]) -> list[str]:
    """The rendered words, one a line: a template may render to several words, or to none."""
    return [line for word in words for line in word.splitlines() if line]


def partition_of(params: Mapping[str, Any], partition_key: str | None) -> str:
    """The partition of a run: the param where it is given, else the scheduler's key; never silently none."""
    chosen = params.get("partition") or partition_key
    if not chosen:
        raise AirflowFailException(
            "this run has no partition: trigger it with the param `partition` (YYYY-MM-DD) or with a partition key"
        )
    return str(chosen)


def announce(task: BaseOperator, context: Any, result: Mapping[str, Any], tell: Iterable[str]) -> None:
    """Publish the task's outlet assets with the step's own facts, and those of `tell` under their names."""
    partition = context["params"].get("partition")
    for asset in task.outlets:
        event = context["outlet_events"][asset]
        event.extra = facts(result) | {name: facts(context["ti"].xcom_pull(name)) for name in tell}
        if partition:  # else Airflow stamps the run's own partition key on the event
            event.add_partitions(partition)


class ProcessStep(BaseOperator):
    """Runs `spira-train` as a process of this machine, in the model environment."""

    template_fields = ("words", "environment")
    template_fields_renderers = {"words": "py"}  # noqa: RUF012
    custom_operator_name = "spira-train · process"
    ui_color = "#d7efe3"

    def __init__(
        self,
        *,
        words: list[str],
        executable: str,
        environment: dict[str, str],
        refusal_is_result: bool,
        tell: tuple[str, ...],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.words = words
        self.executable = executable
        self.environment = environment
        self.refusal_is_result = refusal_is_result
        self.tell = tell
        self._process: subprocess.Popen[str] | None = None

    def execute(self, context: Any) -> dict[str, Any]:
        command = [self.executable, *spread(self.words)]
        self.log.info("%s", shlex.join(command))
        try:
            process = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # a process group of its own, to be stopped as a whole
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            raise AirflowFailException(f"SPIRA_TRAIN={self.executable}: cannot be run ({error.strerror})") from None
        self._process = process
        # What outlives its step would hold the log open for ever.
        threading.Thread(target=lambda: (process.wait(), _signal(process, signal.SIGKILL)), daemon=True).start()
        lines: deque[str] = deque(maxlen=TAIL)
        try:
            for line in process.stdout or ():
                lines.append(line.rstrip())
                self.log.info("%s", lines[-1])
            code = process.wait()
        finally:
            self.on_kill()
        result = settle(self.task_id, code, lines, self.refusal_is_result)
        announce(self, context, result, self.tell)
        return result

    def on_kill(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        self.log.info("stopping the step")
        _signal(process, signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            process.wait()


class ContainerStep(DockerOperator):
    """Runs `spira-train` in a container of its own."""

    template_fields = (*DockerOperator.template_fields, "words")
    custom_operator_name = "spira-train · docker"
    ui_color = "#cfe4f7"

    def __init__(self, *, words: list[str], refusal_is_result: bool, tell: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.words = words
        self.refusal_is_result = refusal_is_result
        self.tell = tell

    def execute(self, context: Any) -> dict[str, Any]:
        ti = context["ti"]
        self.command = ["spira-train", *spread(self.words)]
        # By these an orphan is found: a SIGKILLed worker leaves its container behind.
        self.labels = {
            "spira.dag": ti.dag_id,
            "spira.run": ti.run_id,
            "spira.task": ti.task_id,
            "spira.try": str(ti.try_number),
        }
        self.log.info("%s", shlex.join(self.command))
        try:
            code, lines = 0, super().execute(context) or []
        except DockerContainerFailedException as failure:
            code, lines = _status(failure), failure.logs or []
        result = settle(self.task_id, code, lines, self.refusal_is_result)
        announce(self, context, result, self.tell)
        return result


def _status(failure: DockerContainerFailedException) -> int:
    # The operator keeps the container's exit code only in the text of its exception.
    found = re.search(r"'StatusCode': (\d+)", str(failure))
    return int(found[1]) if found else Exit.FAULT


def _devices(gpus: str) -> DeviceRequest:
    return DeviceRequest(count=-1 if gpus == "all" else int(gpus), capabilities=[["gpu"]])


def _signal(process: subprocess.Popen[str], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _die_with_parent() -> None:
    # A SIGKILLed worker cannot stop its step; Linux's kernel can (prctl PR_SET_PDEATHSIG).
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


DEFAULTS = {
    "owner": "spira",
    "retries": 2,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=2),
}
