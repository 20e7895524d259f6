"""Which split a subject belongs to: a salted digest of the subject decides, so the answer never changes.

Splitting by file (SPIRA v1) puts one voice in training and in test; drawing at random moves subjects between the
splits whenever data arrives. Here a subject's place depends on nothing but the subject and the salt.
"""

import hashlib
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def split_of(subject: str, salt: str, validation: float, test: float) -> Split:
    """The split of a subject's pseudonym; `validation` and `test` are shares of subjects (0..1).

    A larger `test` share only takes subjects from the other splits: nobody leaves the test set.

    >>> split_of("a1b2c3d4e5f60718", "spira", 0.15, 0.25)
    'train'
    """
    place = unit_interval("split", salt, subject)
    if place < test:
        return "test"
    return "validation" if place >= 1 - validation else "train"


def pseudonym(subject: str, salt: str) -> str:
    """16 hex digits that stand for a subject; without the salt they cannot be traced back by guessing names."""
    return hashlib.sha256((salt + subject).encode()).hexdigest()[:16]


def unit_interval(*names: str) -> float:
    """A number in [0, 1) that depends on `names` alone, evenly spread over different names."""
    digest = hashlib.sha256("\x1f".join(names).encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
