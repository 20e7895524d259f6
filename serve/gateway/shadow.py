"""The challenger in the shadow: asked after the client has its answer, compared, stored, never returned."""

import asyncio
import json
import logging
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from serve.gateway import files, metrics
from serve.gateway.problem import Problem
from serve.gateway.upstream import Upstream

log = logging.getLogger("spira.gateway")
STORED = ("probability", "calibrated", "diagnosis")


class Job(NamedTuple):
    """A recording that was answered, and the version to ask as well. answer: the handler's body."""

    request_id: str
    recording: bytes
    version: str
    answer: dict[str, Any]


class Shadow:
    """One job at a time, from a short queue: what does not fit is dropped and counted, never waited for."""

    def __init__(self, upstream: Upstream, file: Path, size: int) -> None:
        self.upstream, self.file = upstream, file
        self._queue: asyncio.Queue[Job] = asyncio.Queue(size)

    def offer(self, job: Job) -> None:
        """Take a job on, or drop it."""
        if job.version == job.answer["model"]["version"]:
            return  # it has just answered
        try:
            self._queue.put_nowait(job)
        except asyncio.QueueFull:
            metrics.shadow.labels(job.version, "dropped").inc()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            job = await self._queue.get()
            try:
                await self._compare(job)
                metrics.shadow.labels(job.version, "compared").inc()
            except (Problem, OSError, KeyError, TypeError) as error:
                log.warning("shadow %s: %s", job.version, error)
                metrics.shadow.labels(job.version, "failed").inc()
            finally:
                self._queue.task_done()

    async def finish(self, seconds: float) -> None:
        """Wait for what is queued, `seconds` at most; the rest is dropped."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._queue.join(), seconds)
        while not self._queue.empty():
            metrics.shadow.labels(self._queue.get_nowait().version, "dropped").inc()

    async def _compare(self, job: Job) -> None:
        theirs = (await self.upstream.shadow(job.recording, job.version, job.request_id)).body
        difference = theirs["probability"] - job.answer["probability"]
        record: dict[str, Any] = {"time": datetime.now(UTC).isoformat(), "request_id": job.request_id}
        for name, body in (("answer", job.answer), ("shadow", theirs)):
            record[name] = {"version": body["model"]["version"]} | {field: body[field] for field in STORED}
        agree = theirs["diagnosis"] == job.answer["diagnosis"]
        files.append(self.file, record | {"difference": difference, "agree": agree})
        metrics.difference.labels(job.version).observe(abs(difference))


def summary(file: Path, version: str) -> dict[str, Any]:
    """What `shadow.jsonl` has on `version`: how many answers, how far from those that were given, how often they agree.

    Read line by line: it grows with the traffic.
    """

    count, total, largest, agree = 0, 0.0, 0.0, 0
    with suppress(FileNotFoundError), file.open() as lines:
        for line in lines:
            record = json.loads(line)
            if record["shadow"]["version"] == version:
                count, total = count + 1, total + abs(record["difference"])
                largest, agree = max(largest, abs(record["difference"])), agree + record["agree"]
    if not count:
        return {"version": version, "answers": 0}
    return {"version": version, "answers": count, "mean_difference": total / count} | {
        "largest_difference": largest,
        "same_diagnosis": agree / count,
    }
