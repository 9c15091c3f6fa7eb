"""How often a wrong admin token is answered as such. Pure: `now` is passed in.

A token has 256 random bits and cannot be guessed, so this protects no token: it tells whoever tries
on to stop, and keeps the log short. It is asked only about tokens that were found to be wrong. A
right token is never delayed: behind a proxy every browser has the proxy's address, and one stranger
there must not lock out the admin.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from wai_protocol.errors import AuthError, Fault

TRIES: Final = 5  # wrong tokens at once: a person who pastes badly needs two
REFILL_S: Final = 15.0  # until an address has one more try
# In all, so that many addresses are no way around it; a bystander waits seconds, not for good.
TOTAL_TRIES: Final = 50
TOTAL_REFILL_S: Final = 0.5
MAX_ADDRESSES: Final = 4096  # remembered; then the one that failed longest ago is forgotten


class _Bucket:
    """Tries that are left, refilled as time goes by."""

    __slots__ = ("_at", "_left", "_refill_s", "_tries")

    def __init__(self, tries: int, refill_s: float, now: float) -> None:
        self._tries = tries
        self._refill_s = refill_s
        self._left = float(tries)
        self._at = now

    def wait_s(self, now: float) -> float:
        """Seconds until there is a try again, 0.0 if there is one."""
        self._left = min(self._tries, self._left + (now - self._at) / self._refill_s)
        self._at = now
        return max(0.0, (1.0 - self._left) * self._refill_s)

    def take(self) -> None:
        self._left = max(0.0, self._left - 1.0)


class SignInThrottle:
    """Told of each wrong token, and of no other."""

    def __init__(self, now: float) -> None:
        self._total = _Bucket(TOTAL_TRIES, TOTAL_REFILL_S, now)
        self._by_address: OrderedDict[str, _Bucket] = OrderedDict()

    def failed(self, address: str, now: float) -> None:
        """Count a wrong token from `address`.

        Raises `AuthError` (RATE_LIMITED), with when to try again, if there were too many before.
        """
        bucket = self._by_address.get(address)
        if bucket is None:
            bucket = self._by_address[address] = _Bucket(TRIES, REFILL_S, now)
            if len(self._by_address) > MAX_ADDRESSES:
                self._by_address.popitem(last=False)
        self._by_address.move_to_end(address)
        wait_s = max(self._total.wait_s(now), bucket.wait_s(now))
        if wait_s > 0.0:
            raise AuthError(
                "this admin token is not known, and too many wrong ones were tried;"
                f" try another in {max(1, round(wait_s))} s",
                Fault.RATE_LIMITED,
                retry_after_s=wait_s,
            )
        bucket.take()
        self._total.take()
