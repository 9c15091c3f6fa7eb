"""Times to first token as counts in fixed logarithmic bins, so that any two can be added. Pure.

The bins are stored by number: changing what is below changes what stored rows mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

BINS_PER_OCTAVE: Final = 4  # a bin is 19 % wide: a quantile read from it is off by 9 % at most
LAST_BIN: Final = 84  # from 2^20.75 ms, half an hour: nothing waits longer for a first token


def bin_of(ms: float) -> int:
    """The bin of a time: 0 for under 1 ms, `LAST_BIN` for all that is longer than the others."""
    if ms < 1.0:
        return 0
    return min(int(math.log2(ms) * BINS_PER_OCTAVE) + 1, LAST_BIN)


def quantile(bins: Mapping[int, int], share: float) -> float | None:
    """The time in ms that `share` (0 to 1) of the requests in `bins` did not exceed, give or take
    half a bin; None for an empty histogram."""
    total = sum(bins.values())
    if total == 0:
        return None
    rank = max(math.ceil(total * share), 1)
    seen = 0
    for number in sorted(bins):
        seen += bins[number]
        if seen >= rank:
            return _middle(number)
    raise AssertionError("the bins hold fewer than their total")


def _middle(number: int) -> float:
    return 0.5 if number == 0 else 2.0 ** ((number - 0.5) / BINS_PER_OCTAVE)
