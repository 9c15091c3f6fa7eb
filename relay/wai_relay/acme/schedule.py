"""Compute when to renew a certificate, and when to try again after a failure. No clock, no I/O."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Final

import msgspec

RENEW_AFTER: Final = 2 / 3
"""Part of the lifetime after which a certificate is renewed: 30 days before the end of 90."""
JITTER: Final = 0.05
"""Part of the lifetime by which the renewal is earlier at random, so that relays that were set up
together do not renew together."""
FIRST_RETRY_S: Final = 60.0
LONGEST_RETRY_S: Final = 6 * 3600.0
"""Longest pause between two tries. Authorities permit about five failures per name and hour, and
days are left for the renewal."""

Random = Callable[[], float]
"""Returns a random number from 0 to 1."""


class Window(msgspec.Struct, frozen=True):
    """The period in which the authority suggests to renew (RFC 9773 section 4.2)."""

    start: datetime.datetime
    end: datetime.datetime


def renewal_due(
    not_before: datetime.datetime, not_after: datetime.datetime, random: Random
) -> datetime.datetime:
    """Return when to renew a certificate with this lifetime, without the authority's window."""
    return not_before + (not_after - not_before) * (RENEW_AFTER - JITTER * random())


def window_due(window: Window, random: Random) -> datetime.datetime:
    """Return a random time in the authority's window."""
    return window.start + (window.end - window.start) * random()


def retry_in_s(failures: int, random: Random) -> float:
    """Return the pause in seconds after `failures` in a row: doubling, half of it random."""
    longest = min(FIRST_RETRY_S * 2.0 ** min(failures - 1, 32), LONGEST_RETRY_S)
    return longest * (0.5 + 0.5 * random())
