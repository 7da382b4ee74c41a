"""How many agents a server sends away, so that they come back to the others: one that returned is to fill up."""

import math
from collections.abc import Collection

TOLERANCE = 0.1
"""The part of the mean by which a server may differ from it."""


def surplus(mine: int, others: Collection[int]) -> int:
    """How many of its `mine` connections a server sends away, where the others have these many.

    None while all are near the mean: within a tenth of it, or twice the deviation that chance makes.
    """
    counts = [mine, *others]
    mean = sum(counts) / len(counts)
    allowed = max(TOLERANCE * mean, 2 * math.sqrt(mean))
    if all(abs(count - mean) <= allowed for count in counts):
        return 0
    return max(mine - math.ceil(mean), 0)
