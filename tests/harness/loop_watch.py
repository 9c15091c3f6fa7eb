"""Measure the longest callback of the event loop.

Measured in CPU time of the thread, so that other work on the machine does not count. It works with
asyncio's own loop only, since uvloop's callbacks are not in Python: tests set `use_uvloop` False.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class LoopWatch:
    """`longest_s` is the CPU time of the longest callback so far, `longest` says which it was."""

    longest_s: float = 0.0
    longest: str = ""
    callbacks: int = 0


@contextlib.contextmanager
def watched_loop() -> Iterator[LoopWatch]:
    """Measure every callback of asyncio's loops (a step of a task is one) until the end."""
    watch = LoopWatch()
    unwatched = asyncio.Handle._run

    def run(self: asyncio.Handle) -> None:
        started = time.thread_time()
        unwatched(self)
        took_s = time.thread_time() - started
        watch.callbacks += 1
        if took_s > watch.longest_s:
            watch.longest_s, watch.longest = took_s, repr(self)[:300]

    asyncio.Handle._run = run  # type: ignore[method-assign]
    try:
        yield watch
    finally:
        asyncio.Handle._run = unwatched  # type: ignore[method-assign]
