"""Keep pauses of the garbage collector short, and return freed memory to the system.

CPython's collector looks at every object that lives, and a relay's modules alone make 44,000: a
pause of 7 ms, in which nobody is served, and more with each connection.

glibc keeps memory that was freed, because freed blocks lie between used ones, and it trims only the
top of the heap by itself. A relay kept 40 MiB after 1,000 streams.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Final

TRIM_AFTER_DROP: Final = 1000
"""Drop of the count below its maximum that is followed by a trim. A relay frees about 40 MiB then;
less is not worth the pause."""

TRIM_DELAY_S: Final = 1.0
"""Delay of the trim in seconds: by then the remaining streams have ended too."""


YOUNG_OBJECTS: Final = 20_000
"""New objects after which the youngest are looked at, in 1 ms. Most die before, since what a
request makes has no cycles; what has some takes 10 MiB until then."""

OLDER_AFTER: Final = 20
"""Looks at the youngest objects for each one at those that have survived one."""


def hold_heap() -> None:
    """Look for no garbage until `settle_heap`: a program that is being loaded makes hardly any."""
    gc.disable()


def settle_heap() -> None:
    """Exempt all objects of now, which live as long as the process, from garbage collections.

    Call it once everything is loaded.
    """
    gc.enable()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, OLDER_AFTER, OLDER_AFTER)


class HeapTrimmer:
    """Watches a count of streams or connections, and trims the heap when it has dropped far.

    `call_later`: schedules a call after some seconds, as the event loop's method does. `trim`: what
    to call, by default `trim_heap`.
    """

    def __init__(
        self,
        call_later: Callable[[float, Callable[[], None]], object],
        trim: Callable[[], None] | None = None,
    ) -> None:
        self._call_later = call_later
        self._trim = trim or trim_heap
        self._most = 0

    def update(self, count: int) -> None:
        """Set the current count."""
        if count > self._most:
            self._most = count
        elif self._most - count >= TRIM_AFTER_DROP:
            self._most = count
            self._call_later(TRIM_DELAY_S, self._trim)


def trim_heap() -> None:
    """Return all free memory of glibc's heap to the system. Takes 12 ms for 80 MiB.

    Does nothing with another C library.
    """
    import ctypes  # imported here because most processes never need it

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
