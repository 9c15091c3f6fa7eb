"""Bound the memory and depth of a decoded value that a peer sent."""

from __future__ import annotations

import math
import sys
from typing import Any, Final

MAX_DEPTH: Final = 16
"""Levels of nested maps and lists. The values that relay and node send have at most five."""


def fits(value: Any, limit_bytes: int) -> bool:
    """Return whether `value`, made of msgpack's types, stays within the bounds.

    It must take at most `limit_bytes` of memory, have at most `MAX_DEPTH` levels, and hold no float
    that is infinite or NaN. The check stops at the first element that exceeds a bound, so that a
    huge value costs no more than an accepted one.
    """
    left = limit_bytes
    waiting = [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        left -= sys.getsizeof(part)
        if left < 0 or depth > MAX_DEPTH:
            return False
        if isinstance(part, float) and not math.isfinite(part):
            return False
        if isinstance(part, dict):
            waiting += [(key, depth + 1) for key in part]
            part = part.values()
        elif not isinstance(part, list | tuple):
            continue
        waiting += [(element, depth + 1) for element in part]
    return True
