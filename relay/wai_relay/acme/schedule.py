"""When a certificate is renewed, and when a try that failed is made again. No clock, no I/O."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

RENEW_AFTER: Final = 2 / 3
"""Of its lifetime: 30 days are left of 90, and 2 of 6."""
JITTER: Final = 0.05
"""Of its lifetime, earlier: relays that were set up together don't renew together."""
FIRST_RETRY_S: Final = 60.0
LONGEST_RETRY_S: Final = 6 * 3600.0
"""An authority lets a name fail about five times an hour, and a lifetime's third is days."""

Random = Callable[[], float]
"""From 0 up to 1."""


@dataclass(frozen=True, slots=True)
class Window:
    """When the authority would like a certificate to be renewed (RFC 9773 section 4.2)."""

    start: datetime.datetime
    end: datetime.datetime


def renewal_due(
    not_before: datetime.datetime, not_after: datetime.datetime, random: Random
) -> datetime.datetime:
    """When to renew by ourselves."""
    return not_before + (not_after - not_before) * (RENEW_AFTER - JITTER * random())


def window_due(window: Window, random: Random) -> datetime.datetime:
    """A moment in the authority's window."""
    return window.start + (window.end - window.start) * random()


def retry_in_s(failures: int, random: Random) -> float:
    """Seconds until the next try after `failures` in a row: doubling, the upper half at random."""
    longest = min(FIRST_RETRY_S * 2.0 ** min(failures - 1, 32), LONGEST_RETRY_S)
    return longest * (0.5 + 0.5 * random())
