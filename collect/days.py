"""How much came on each day, and whether the day is closed."""

import json

from pydantic import BaseModel, Field

from collect import ledger
from collect.place import AREA
from spira_train.store import CLOSED, Lake


class Day(BaseModel):
    """Counts of recordings. landed: with label and consent, for training."""

    day: str
    received: int
    waiting: int
    labelled: int
    landed: int
    withdrawn: int
    closed: bool = Field(description="over, and handed to training; what changes later closes it once more")


def overview(lake: Lake) -> list[Day]:
    """Every day, newest first."""
    return [of(lake, day) for day in reversed(ledger.days(lake))]


def of(lake: Lake, day: str) -> Day:
    """The counts of one day."""
    found = ledger.recordings(lake, day).values()
    states = [one.state for one in found]
    return Day(
        day=day,
        received=len(states),
        waiting=states.count("waiting"),
        labelled=sum(one.label is not None for one in found if not one.withdrawn),
        landed=states.count("landed"),
        withdrawn=states.count("withdrawn"),
        closed=closed(lake, day),
    )


def closed(lake: Lake, day: str) -> bool:
    """Whether a day was handed to training."""
    try:
        return bool(json.loads(lake.read(AREA, day, CLOSED)))
    except FileNotFoundError:
        return False
