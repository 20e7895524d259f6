"""One step in a container of its own: hardened, found again after its worker died, gone after every ending.

The engine itself remembers which container belongs to which task, by labels that it carries from the moment it
exists. Airflow's resumable jobs keep the id on their side, after the fact: a worker that dies in between would start
a second training beside the first (docs/decisions/0008).
"""

import os
import re
import shlex
import struct
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from airflow.providers.docker.operators.docker import DockerOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from docker import APIClient
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest, LogConfig
from docker.utils import parse_bytes
from requests import RequestException
from step_containers import labels_of, short
from step_outcome import TAIL, finish, spread
from urllib3.exceptions import HTTPError

STOP_SECONDS, PATIENCE_SECONDS = 10, 60.0
# Scratch space of a step: in memory, so it counts towards the step's limit.
SCRATCH = {"/tmp": "rw,noexec,nosuid,nodev,size=2g,mode=1777"}  # noqa: S108 - the container's own
PROCESSES = 1024  # threads count; a model server in the packaging sandbox has some hundred
GIB = 1 << 30
_LOST = (RequestException, HTTPError, struct.error, OSError)  # how a stream from the engine can break


class EngineAway(AirflowException):
    """The engine has not answered for a while; the container, where it lives on, is taken up by the next try."""


class ContainerStep(DockerOperator):
    """Runs `spira-train` in a container of its own.

    stack: which installation it belongs to, on an engine that several may share. cpus: how many it may use. gpus:
    `none`, `auto` (where the engine offers any), `all`, or how many.
    """

    template_fields = (*DockerOperator.template_fields, "words")
    template_fields_renderers = DockerOperator.template_fields_renderers | {"words": "py"}
    custom_operator_name = "spira-train · docker"
    ui_color = "#cfe4f7"

    def __init__(
        self,
        *,
        words: list[str],
        refusal_is_result: bool,
        tell: tuple[str, ...],
        stack: str,
        cpus: float,
        gpus: str = "none",
        **kwargs: Any,
    ) -> None:
        super().__init__(auto_remove="force", mount_tmp_dir=False, force_pull=False, cpus=cpus, **kwargs)
        self.words = words
        self.refusal_is_result = refusal_is_result
        self.tell = tell
        self.stack = stack
        self.gpus = gpus

    @property
    def cli(self) -> APIClient:
        try:
            return self.hook.api_client
        except AirflowException:
            raise unreachable(str(self.docker_url)) from None
        except DockerException as error:
            raise self._explained(error) from None

    def execute(self, context: Any) -> dict[str, Any]:
        self._normalize_mounts()
        self.command = ["spira-train", *spread(self.words)]
        self.log.info("%s", shlex.join(self.command))
        try:
            image = str(self.cli.inspect_image(self.image)["Id"])
            self.labels = labels_of(context["ti"], self.stack, [image, *self.command])
            self.container = self._left_behind() or self._start(image)
            lines, state = self._follow(self.container["Id"])
        except EngineAway:
            raise
        except (DockerException, *_LOST) as error:
            self._remove()
            raise self._explained(error) from None
        except BaseException:  # a timeout, or somebody wants it to end
            self.on_kill()
            raise
        self._remove()
        if state["OOMKilled"] and state["ExitCode"]:
            raise AirflowFailException(
                f"{self.task_id}: out of memory: it needed more than its limit of {self.mem_limit}. Raise "
                "SPIRA_MEMORY, or make the work smaller (train.batch, noise.variants, data.history_days)"
            )
        return finish(self, context, int(state["ExitCode"]), lines)

    def on_kill(self) -> None:
        """Stop the container and remove it: the task was failed, cleared or timed out."""
        if self.container is None or not self.hook.client_created:
            return
        self.log.info("stopping the step's container")
        with suppress(DockerException, *_LOST):
            self.cli.stop(self.container["Id"], timeout=STOP_SECONDS)
        self._remove()

    def _left_behind(self) -> dict[str, Any] | None:
        """The container in which an earlier try of this task still does, or has done, the same work.

        Others of this task are removed: their try failed, or they do what is no longer asked for.
        """
        mine = {name: value for name, value in (self.labels or {}).items() if name not in ("spira.try", "spira.work")}
        found = None
        for other in self.cli.containers(all=True, filters={"label": [f"{k}={v}" for k, v in mine.items()]}):
            state = self.cli.inspect_container(other["Id"])["State"]
            good = state["Running"] or (state["Status"] == "exited" and state["ExitCode"] == 0)
            if good and found is None and other["Labels"].get("spira.work") == self.labels["spira.work"]:
                number, doing = other["Labels"]["spira.try"], "still runs" if state["Running"] else "has finished"
                self.log.info("going on with container %s, which try %s left and which %s", short(other), number, doing)
                found = other
            else:
                self.log.info("removing container %s of an earlier try", short(other))
                self.cli.remove_container(other["Id"], force=True)
        return found

    def _start(self, image: str) -> dict[str, Any]:
        wanted = [_devices(self.gpus)] if self.gpus != "none" else None
        try:
            return self._run(image, wanted)
        except APIError as error:
            if self.gpus != "auto" or "could not select device driver" not in str(error):
                raise
        self.log.info("SPIRA_GPUS=auto: the engine offers no GPU here, so this step runs on the CPU")
        self._remove()
        return self._run(image, None)

    def _run(self, image: str, devices: list[DeviceRequest] | None) -> dict[str, Any]:
        limits = self.cli.create_host_config(
            mounts=self.mounts,
            network_mode=self.network_mode,
            tmpfs=SCRATCH,
            shm_size=min(GIB, parse_bytes(self.mem_limit)),  # docker's 64 MB kill DataLoader workers
            mem_limit=self.mem_limit,
            memswap_limit=self.mem_limit,  # no swap beyond it
            nano_cpus=round(self.cpus * 1e9),
            pids_limit=PROCESSES,
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            device_requests=devices,
            init=True,  # reaps what a step leaves behind, and hands signals on
            log_config=LogConfig(type="json-file", config={"max-size": "64m", "max-file": "2"}),
        )
        self.container = self.cli.create_container(
            image=image,
            command=self.command,
            environment=self.environment | {"SPIRA_IMAGE_DIGEST": image},
            user=self.user,
            labels=self.labels,
            host_config=limits,
        )
        self.cli.start(self.container["Id"])
        self.log.info("container %s of image %s (%s)", short(self.container), self.image, image.partition(":")[2][:12])
        return dict(self.container)

    def _follow(self, container: str) -> tuple[deque[str], dict[str, Any]]:
        """Write the container's log into the task's until it ends; (its last lines, its final state).

        An engine, or a proxy before it, that restarts meanwhile costs nothing but a pause.
        """
        tail: deque[str] = deque(maxlen=TAIL)
        seen, contact = 0, time.monotonic()
        while True:
            try:
                for number, line in enumerate(self._lines(container), 1):
                    if number > seen:
                        seen = number
                        tail.append(line)
                        self.log.info("%s", line)
                state = self.cli.inspect_container(container)["State"]
                if not state["Running"]:
                    return tail, dict(state)
                contact = time.monotonic()
            except NotFound:
                raise AirflowException(
                    f"{self.task_id}: its container {container[:12]} was removed by somebody else"
                ) from None
            except (AirflowException, APIError, *_LOST) as error:
                if time.monotonic() - contact > PATIENCE_SECONDS:
                    raise EngineAway(
                        f"{self.task_id}: the Docker engine at {self.docker_url} has not answered for "
                        f"{PATIENCE_SECONDS:.0f} s ({type(error).__name__}); the next try goes on with its container"
                    ) from None
            time.sleep(0.5)

    def _lines(self, container: str) -> Iterator[str]:
        rest = b""
        for chunk in self.cli.logs(container, stdout=True, stderr=True, stream=True, follow=True):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace").rstrip() for line in whole)
        if rest:
            yield rest.decode(errors="replace").rstrip()

    def _remove(self) -> None:
        if self.container:
            with suppress(DockerException, AirflowException, *_LOST):  # gone already; or the reaper's work
                self.cli.remove_container(self.container["Id"], force=True)
            self.container = None  # type: ignore[assignment]

    def _explained(self, error: Exception) -> AirflowException:
        """What the engine said, as what is wrong and what to do."""
        text = str(getattr(error, "explanation", None) or error)
        place = f"the Docker engine at {self.docker_url}"
        if isinstance(error, ImageNotFound):
            return AirflowFailException(
                f"image {self.image} is not on {place}; build it with `make images` (SPIRA_IMAGE)"
            )
        if "no space left on device" in text:
            return AirflowException(
                f"{place} has no space left on its disk; free some (`docker system df` shows where)"
            )
        if "could not select device driver" in text:
            return AirflowFailException(
                f"SPIRA_GPUS={self.gpus}, but {place} offers no GPU (is the NVIDIA container toolkit installed?); "
                "set SPIRA_GPUS=auto or none to train on the CPU"
            )
        if missing := re.search(r"bind source path does not exist: (\S+)", text):
            return AirflowFailException(
                f"folder {missing[1]} does not exist on the engine's host; create it, or name another"
            )
        if missing := re.search(r"network (\S+) not found", text):
            return AirflowFailException(
                f"network {missing[1]} does not exist on {place}; is the stack up? (SPIRA_NETWORK)"
            )
        if getattr(getattr(error, "response", None), "status_code", None) == 403:
            return AirflowFailException(f"{place} does not allow this container: {text}")
        return AirflowException(f"{place} said: {text}")


def unreachable(url: str) -> AirflowException:
    """Why the engine at `url` cannot be talked to, and what to do."""
    if url.startswith("unix:"):
        socket = Path("/" + url.removeprefix("unix:").lstrip("/"))
        try:
            if socket.exists() and not os.access(socket, os.W_OK):
                return AirflowFailException(
                    f"{socket}: this user may not use the Docker engine; add it to the group that owns the socket, or "
                    "set DOCKER_HOST to the engine proxy"
                )
        except PermissionError:
            return AirflowFailException(f"{socket}: this user may not look there; set DOCKER_HOST to the engine proxy")
    return AirflowException(f"the Docker engine at {url} does not answer; start it (DOCKER_HOST says where it is)")


def _devices(gpus: str) -> DeviceRequest:
    return DeviceRequest(count=int(gpus) if gpus.isdigit() else -1, capabilities=[["gpu"]])
