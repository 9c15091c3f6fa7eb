"""How much memory a decoded value of a peer takes: what bounds what is kept of it."""

from __future__ import annotations

import math
import sys
from typing import Any, Final

MAX_DEPTH: Final = 16
"""Maps and lists within each other. What our ends tell has at most five."""


def fits(value: Any, limit_bytes: int) -> bool:
    """Whether `value`, made of msgpack's types, takes at most `limit_bytes`, is at most `MAX_DEPTH`
    deep, and holds no number that is infinite or none at all.

    Stops at the first element beyond the limit, so that it costs no more than what it lets pass.
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
