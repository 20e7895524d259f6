"""How right the served models were on patients whose diagnosis became known later: what the inference app counts.

The app writes the file (serve/app/live.py); here it is read, for status and report. It is a watch over the model and no
test of it: who gets a later diagnosis is no random choice.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from spira_train.outcome import BadInput


class Share(BaseModel):
    """A proportion and its 95 % interval."""

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)


class Live(BaseModel):
    """Of one version. n: answers with a later diagnosis; the shares are of the conclusive ones."""

    n: int = Field(ge=0)
    inconclusive: int = Field(ge=0)
    accuracy: Share | None = None
    sensitivity: Share | None = None
    specificity: Share | None = None


_FILE = TypeAdapter(dict[str, Live])


def read(file: Path) -> dict[str, Live]:
    """By version; empty where the app has not written `file` yet. Raises `BadInput` naming file and field."""
    try:
        return _FILE.validate_json(file.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}); SPIRA_LIVE names it") from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(f"{file}: {where}: {first['msg']}; the app writes it anew when it is deleted") from None


def lines(live: Mapping[str, Live]) -> Iterator[str]:
    """One sentence a version.

    >>> half = Share(value=0.5, low=0.2, high=0.8)
    >>> list(lines({"v1": Live(n=9, inconclusive=1, accuracy=half)}))
    ['v1: right on 50% (20 to 80) of 8 conclusive answers with a later diagnosis, 1 inconclusive']
    """
    for version, one in live.items():
        share = "right on none yet"
        if one.accuracy:
            value, low, high = (round(100 * part) for part in (one.accuracy.value, one.accuracy.low, one.accuracy.high))
            share = f"right on {value}% ({low} to {high})"
        conclusive = f"{one.n - one.inconclusive} conclusive answers with a later diagnosis"
        yield f"{version}: {share} of {conclusive}, {one.inconclusive} inconclusive"
