"""The gate: limits from `config/gate.yaml` held against metrics. Fail-closed: what is missing is a refusal."""

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


class Gate(Section):
    """The plan of what a served model has promised."""

    min_per_class: Annotated[int, Field(ge=2)]
    noise: NoiseConfig
    limits: Annotated[list[Limit], Field(min_length=1)]

    def digest(self) -> str:
        return digest_json(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Check:
    """One limit with what was found."""

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


def judge(gate: Gate, metrics: Mapping[str, Any], per_class: Mapping[str, int]) -> list[Check]:
    """Hold every limit against `metrics` (probe -> metric -> {value, low, high})."""
    checks = [
        Check(
            f"the test set holds {count} {name}, at least {gate.min_per_class} are asked for",
            count >= gate.min_per_class,
            "fewer recordings prove nothing",
        )
        for name, count in per_class.items()
    ]
    return checks + [_hold(limit, metrics) for limit in gate.limits]


def _hold(limit: Limit, metrics: Mapping[str, Any]) -> Check:
    name = f"{limit.probe} {limit.metric}" + ("" if limit.bound == "value" else f" ({limit.bound} end of its interval)")
    found = metrics.get(limit.probe, {}).get(limit.metric, {}).get(limit.bound)
    if not isinstance(found, int | float) or not math.isfinite(found):
        return Check(f"{name} is missing", False, limit.why)
    if limit.min is not None and found < limit.min:
        return Check(f"{name} is {found:.3f}, at least {limit.min:g} is asked for", False, limit.why)
    if limit.max is not None and found > limit.max:
        return Check(f"{name} is {found:.3f}, at most {limit.max:g} is allowed", False, limit.why)
    allowed = " and ".join(
        f"{word} {value:g}" for word, value in (("at least", limit.min), ("at most", limit.max)) if value is not None
    )
    return Check(f"{name} is {found:.3f} ({allowed})", True, limit.why)
