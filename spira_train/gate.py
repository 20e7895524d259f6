"""The gate: limits from `config/gate.yaml` held against the evidence. Fail-closed: what is missing is a refusal."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from spira_train.config import NoiseConfig, Section
from spira_train.outcome import BadInput
from spira_train.store import digest_json


class Limit(Section):
    """One promise: `metric` of `probe`, at its `bound`, lies between `min` and `max`."""

    probe: str
    metric: str
    bound: Literal["value", "low", "high"] = "value"
    min: float | None = None
    max: float | None = None
    why: str = ""

    @model_validator(mode="after")
    def limits_something(self) -> "Limit":
        if self.min is None and self.max is None:
            raise ValueError("needs min or max")
        return self


class Slices(Section):
    """The promise for every group of the test set that is large enough."""

    min_per_class: Annotated[int, Field(ge=2)]
    auc: Annotated[float, Field(ge=0, le=1)]
    rate: Annotated[float, Field(ge=0, le=1)]


class Against(Section):
    """The promise of a challenger to whom the champion answers today.

    margin: AUC that it may be worse by, at the end of the interval that is exceeded with 95 % confidence; alpha: level
    of the tests that say "worse".
    """

    margin: Annotated[float, Field(ge=0, le=1)]
    alpha: Annotated[float, Field(gt=0, lt=1)]


class Serving(Section):
    """What an archive must show in the sandbox model server; the defaults are those of a gate that says nothing.

    milliseconds: median answer to a golden recording, once warm; seconds: longest wait for any answer; requests: short
    recordings asked for in a row; mebibytes: by how much its process may have grown after them.
    """

    milliseconds: Annotated[float, Field(gt=0)] = 1000
    seconds: Annotated[float, Field(gt=0)] = 10
    requests: Annotated[int, Field(ge=1)] = 200
    mebibytes: Annotated[float, Field(gt=0)] = 32


class Gate(Section):
    """The plan of what a served model has promised."""

    min_per_class: Annotated[int, Field(ge=2)]
    noise: NoiseConfig
    limits: Annotated[list[Limit], Field(min_length=1)]
    slices: Slices | None = None
    champion: Against | None = None
    serving: Serving = Serving()

    def digest(self) -> str:
        """Of all that the quality blessing depends on."""
        return digest_json(self.model_dump(mode="json", exclude={"serving"}))


@dataclass(frozen=True)
class Check:
    """One limit with what was found. subject: what it is about, as `probe metric`."""

    subject: str
    text: str
    passed: bool
    why: str = ""


def read(file: Path) -> Gate:
    """The gate in a YAML file; raises `BadInput` naming the field."""
    try:
        return Gate.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise BadInput(f"{file}: not found; without a gate nothing can be blessed") from None
    except yaml.YAMLError:
        raise BadInput(f"{file}: is not valid YAML") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from None


def judge(gate: Gate, evidence: Mapping[str, Any], per_class: Mapping[str, int]) -> list[Check]:
    """Hold every limit against `evidence`.

    evidence: `metrics` (probe -> metric -> {value, low, high}), `slices` (`slices.measured`), `leaks` (how many test
    subjects and recordings were trained on) and `champion` (`champion.compare`, or None where there is no champion).
    per_class: recordings of each class in the test set.
    """
    checks = [
        Check(
            "test set size",
            f"the test set holds {count} {name}, at least {gate.min_per_class} are asked for",
            count >= gate.min_per_class,
            "fewer recordings prove nothing",
        )
        for name, count in per_class.items()
    ]
    checks.append(_leaks(evidence.get("leaks")))
    checks += [_hold(limit, evidence.get("metrics", {})) for limit in gate.limits]
    if gate.slices:
        checks += _slices(gate.slices, evidence.get("slices"))
    if gate.champion:
        checks += _champion(gate.champion, evidence)
    return checks


def unproven(evidence: Mapping[str, Any]) -> list[str]:
    """The slices that are too small to be judged, wholly or in one class: never passed in silence."""
    words = {"too few": "too few to judge", "one class": "too few of one class to tell them apart"}
    return [
        f"{name}: {entry['controls']} controls and {entry['patients']} patients, {words[entry['verdict']]}"
        for name, entry in (evidence.get("slices") or {}).items()
        if entry["verdict"] in words
    ]


def _leaks(leaks: Mapping[str, int] | None) -> Check:
    name, why = "leaks", "who was heard in training proves nothing in the test"
    if leaks is None:
        return Check(name, "whether the test set was trained on is unknown", False, why)
    found = ", ".join(f"{count} {what}" for what, count in leaks.items() if count)
    if found:
        return Check(name, f"the test set shares {found} with training", False, why)
    return Check(name, "the test set shares no subject and no recording with training", True, why)


def _hold(limit: Limit, metrics: Mapping[str, Any]) -> Check:
    subject = f"{limit.probe} {limit.metric}"
    name = subject + ("" if limit.bound == "value" else f" ({limit.bound} end of its interval)")
    found = metrics.get(limit.probe, {}).get(limit.metric, {}).get(limit.bound)
    if not isinstance(found, int | float) or not math.isfinite(found):
        return Check(subject, f"{name} is missing", False, limit.why)
    if limit.min is not None and found < limit.min:
        return Check(subject, f"{name} is {found:.3f}, at least {limit.min:g} is asked for", False, limit.why)
    if limit.max is not None and found > limit.max:
        return Check(subject, f"{name} is {found:.3f}, at most {limit.max:g} is allowed", False, limit.why)
    allowed = " and ".join(
        f"{word} {value:g}" for word, value in (("at least", limit.min), ("at most", limit.max)) if value is not None
    )
    return Check(subject, f"{name} is {found:.3f} ({allowed})", True, limit.why)


def _slices(limits: Slices, found: Mapping[str, Any] | None) -> list[Check]:
    if not found:
        return [Check("slices", "slices are missing", False, "every group must be served")]
    checks = []
    for name, entry in found.items():
        for metric, least in (("auc", limits.auc), ("sensitivity", limits.rate), ("specificity", limits.rate)):
            if metric in entry:
                value, high = entry[metric]["value"], entry[metric]["high"]
                text = f"{name}: {metric} is {value:.3f} (at best {high:.3f}), {least:g} must be within reach"
                checks.append(Check(f"slice {name}", text, high >= least, "a group that is served worse is not served"))
    return checks


def _champion(limits: Against, evidence: Mapping[str, Any]) -> list[Check]:
    if "champion" not in evidence:
        return [Check("champion", "whether there is a champion is unknown", False, "nothing worse may replace it")]
    found = evidence["champion"]
    if found is None:
        return [Check("champion", "there is no champion yet: the limits above decide", True)]
    checks = []
    for probe in ("clean", "ward_noise"):
        entry = found.get(probe)
        if not entry:
            checks.append(Check(f"champion {probe}", f"the champion's answers to {probe} are missing", False))
            continue
        gain = entry["auc_gain"]
        text = f"against the champion, {probe}: AUC {gain['value']:+.3f}, with 95 % confidence"
        text += f" at least {gain['low']:+.3f}, {-limits.margin:+g} is allowed"
        why = "not worse than what is served, with 95 % confidence"
        checks.append(Check(f"champion {probe}", text, gain["low"] >= -limits.margin, why))
        text = f"against the champion, {probe}: {entry['won']} recordings won, {entry['lost']} lost"
        text += f" (McNemar p = {entry['mcnemar']:.3f})"
        worse = entry["lost"] > entry["won"] and entry["mcnemar"] < limits.alpha
        checks.append(Check(f"champion {probe}", text, not worse, "not more errors than chance explains"))
    for name, entry in found.get("slices", {}).items():
        gain = entry["auc_gain"]
        alpha = limits.alpha / len(found["slices"])
        worse = gain["high"] < 0 or (entry["lost"] > entry["won"] and entry["mcnemar"] < alpha)
        text = f"against the champion, {name}: AUC {gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
        checks.append(Check(f"champion slice {name}", text, not worse, "no group may lose what it has"))
    return checks
