"""`Random`: the only source of randomness.

Every consumer derives a stream of its own from the run's seed by name, so adding a consumer changes no other.
"""

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Random:
    """A named tree of random streams.

    >>> Random(42).stream("noise", "a1b2").integers(1000) == Random(42).stream("noise", "a1b2").integers(1000)
    True
    >>> Random(42).stream("noise").integers(1000) == Random(43).stream("noise").integers(1000)
    False
    """

    seed: int

    def integer(self, *names: object) -> int:
        """A 63-bit integer that depends on the seed and on `names` alone."""
        text = "\x1f".join([str(self.seed), *map(str, names)])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def stream(self, *names: object) -> np.random.Generator:
        """A numpy generator for the consumer called `names`."""
        return np.random.Generator(np.random.PCG64(self.integer(*names)))
