"""How a step can end. The DAG shares these numbers (`dags/step.py`); a test holds both sides equal."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of `spira-train`. Anything else is a fault that is worth a retry."""

    DONE = 0
    FAULT = 1
    BAD_INPUT = 10
    REFUSED = 20
    TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: a neighbour is away or still writing
    NOTHING_TO_DO = 99


class StepError(Exception):
    """A step cannot go on; `str(error)` is the one message a user reads."""

    exit = Exit.FAULT


class BadInput(StepError):
    """The input is wrong; running again changes nothing."""

    exit = Exit.BAD_INPUT


class Refused(StepError):
    """A gate said no."""

    exit = Exit.REFUSED


class TryAgain(StepError):
    """Something outside is away (model server, disk space, a writer at work): worth a retry."""

    exit = Exit.TRY_AGAIN


class NothingToDo(StepError):
    """There is no work here: the task is skipped, not failed."""

    exit = Exit.NOTHING_TO_DO
