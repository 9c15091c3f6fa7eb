"""How slow this machine's core is just now, so that a bound on CPU time means the same work
everywhere. A shared machine's core changes its speed from one moment to the next."""

from __future__ import annotations

import time
from typing import Final

import msgspec

_LIST: Final = b"[" + b'"",' * 49_999 + b'""]'
_USUAL_S: Final = 0.0025
"""For decoding `_LIST`, where the bounds of tests were chosen: 0.05 µs an element."""
_DECODER: Final = msgspec.json.Decoder(list[msgspec.Raw])


def slowness() -> float:
    """How many times as long this core takes now as where bounds were chosen; at least 1."""
    started = time.thread_time()
    _DECODER.decode(_LIST)
    return max((time.thread_time() - started) / _USUAL_S, 1.0)
