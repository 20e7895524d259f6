"""One step as a process of this machine, in the model environment."""

import ctypes
import os
import shlex
import signal
import subprocess
import threading
from collections import deque
from contextlib import suppress
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException
from step_outcome import TAIL, finish, spread

STOP_SECONDS = 10.0


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
        self._unwanted = False  # told to end before there was a process

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
        if self._unwanted:
            self.on_kill()
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
        return finish(self, context, code, lines)

    def on_kill(self) -> None:
        process = self._process
        if process is None:
            self._unwanted = True
            return
        if process.poll() is not None:
            return
        self.log.info("stopping the step")
        _signal(process, signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            process.wait()


def _signal(process: subprocess.Popen[str], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _die_with_parent() -> None:
    # A SIGKILLed worker cannot stop its step; Linux's kernel can (prctl PR_SET_PDEATHSIG).
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
