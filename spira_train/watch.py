"""Whether the recordings that people send still are those that the champion was trained on.

Read from the gateway's audit, which keeps of each answer what was measured on the recording and the probability, and
nothing of the sound; compared with the statistics that the champion's archive carries, as a new partition is.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from serve import torchserve
from spira_train import drift, novelty
from spira_train.config import DriftConfig
from spira_train.outcome import BadInput, NothingToDo, Refused
from spira_train.registry import CHAMPION, MODEL, named
from spira_train.store import digest_file, write_atomic

STATISTICS = "statistics.json"


def run(
    *,
    audit: Path,
    models: Path,
    mlflow: str,
    days: int,
    out: Path | None = None,
    limits: DriftConfig | None = None,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Compare the champion's answers of the last `days` with its training data; returns the step's facts.

    audit: the gateway's audit.jsonl; models: the model store; out: folder for a report a day. The facts: version,
    since, answers (how many), drift (texts of what drifted), warnings (how often each was given), findings. Raises
    `NothingToDo` where no champion answered, `Refused` where its archive is not as registered, `TryAgain` where MLflow
    is away.
    """
    now = now or datetime.now(UTC)
    champion = named(mlflow, CHAMPION)
    if not champion:
        raise NothingToDo("there is no champion yet")
    version, since = champion["version"], now - timedelta(days=days)
    facts: dict[str, Any] = {"version": version, "since": since.isoformat(timespec="seconds")}
    lines = [line for line in _answers(audit, since) if line.get("version") == version]
    facts["answers"] = len(lines)
    if not lines:
        raise NothingToDo(f"{audit}: no answer of {version} in the last {days} days says what was heard")
    reference = _statistics(models / f"{MODEL}-{version}.mar", champion["archive"])
    known = {name: reference["data"]["numeric"][name] for name in novelty.FACTS}
    heard = {"count": reference["data"]["count"], "categorical": {}, "numeric": known, "features": None}
    findings = drift.compare(heard, [line["heard"] for line in lines], limits)
    if reference["scores"]["count"]:
        findings += drift.compare(reference["scores"], [{"score": line["calibrated"]} for line in lines], limits)
    warned = Counter(warning for line in lines for warning in line["warnings"])
    facts |= {"drift": [finding.text for finding in findings if finding.drifted]}
    facts |= {"warnings": dict(warned.most_common()), "findings": [asdict(finding) for finding in findings]}
    if out:
        content = json.dumps(facts, indent=1, allow_nan=False).encode()
        write_atomic(out / f"{now:%Y-%m-%d}.json", content)
    return facts


def _answers(audit: Path, since: datetime) -> Iterator[dict[str, Any]]:
    """The answered lines of an audit since then. One that is half written, by a gateway at work, is left out.

    Also of what was moved away beside it, under the same name with more after it; nothing where there is no audit yet.
    """
    for file in sorted(audit.parent.glob(f"{audit.stem}*{audit.suffix}")):
        try:
            lines = file.open(encoding="utf-8")
        except PermissionError:
            raise BadInput(f"{file}: not readable; let this user read the gateway's audit") from None
        with lines:  # one by one: it grows with the traffic
            for line in map(_line, lines):
                if line.get("status") == 200 and "heard" in line and datetime.fromisoformat(line["time"]) >= since:
                    yield line


def _line(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError:
        return {}


def _statistics(archive: Path, digest: str) -> Mapping[str, Any]:
    if not archive.is_file() or digest_file(archive) != digest:
        raise Refused(f"{archive}: missing, or not as it was registered ({digest[:12]}); run `spira-train reconcile`")
    return dict(json.loads(torchserve.read_member(archive, STATISTICS)))
