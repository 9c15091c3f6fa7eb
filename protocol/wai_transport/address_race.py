"""In which order, and when, the addresses of a host are dialled (Happy Eyeballs, RFC 8305).

A pure state machine, told the time, for a shell that opens the sockets: `connecting` here with an
event loop, `wai_cli.client.connecting` without one. An address that does not answer holds up the
next one for a quarter of a second, and one that fails not at all.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

STAGGER_S: Final = 0.25
"""From one attempt to the next (RFC 8305 section 8, "Connection Attempt Delay")."""

MAX_ADDRESSES: Final = 16
"""Of one name. The last of them is dialled after 4 s, which is within every connect limit."""


class Address(NamedTuple):
    """Where a socket can be connected to, as `getaddrinfo` says it."""

    family: int
    sockaddr: tuple[Any, ...]

    def __str__(self) -> str:
        return str(self.sockaddr[0])


def ordered(found: Iterable[tuple[Any, ...]]) -> list[Address]:
    """The results of `getaddrinfo` in the order in which to dial them (RFC 8305 section 4).

    The resolver's order (RFC 6724) is kept within a family; the families alternate, beginning with
    that of the first result.
    """
    unique = dict.fromkeys(Address(int(entry[0]), entry[4]) for entry in found)
    by_family: dict[int, list[Address]] = {}
    for address in unique:
        by_family.setdefault(address.family, []).append(address)
    rounds = itertools.zip_longest(*by_family.values())
    return [address for one_round in rounds for address in one_round if address][:MAX_ADDRESSES]


class AddressRace:
    """The attempts to connect to one host. Whoever runs it ends it with the first that succeeds.

    With `again_s`, addresses that have not answered are dialled once more each time so many seconds
    have passed, beside the attempts that are still waiting: the kernel repeats a lost SYN after 1,
    3 and 7 s only, and a network that came back is found sooner by a new one.
    """

    def __init__(
        self, addresses: list[Address], now: float, *, again_s: float | None = None
    ) -> None:
        self._waiting = deque(addresses)
        self._under_way: list[Address] = []
        self._errors: dict[Address, OSError] = {}
        self._again_s = again_s
        self._next_at = now

    def take(self, now: float) -> Address | None:
        """An address to dial now, if there is one; call again until there is none."""
        if now < self._next_at:
            return None
        if not self._waiting and self._again_s is not None:
            self._waiting.extend(dict.fromkeys(self._under_way))
        if not self._waiting:
            return None
        address = self._waiting.popleft()
        self._under_way.append(address)
        pause_s = STAGGER_S if self._waiting or self._again_s is None else self._again_s
        self._next_at = now + pause_s
        return address

    def failed(self, address: Address, error: OSError, now: float) -> None:
        """An attempt failed: another address need not wait for its time."""
        self._under_way.remove(address)
        self._errors[address] = error
        if self._waiting:
            self._next_at = now

    def next_deadline(self) -> float | None:
        """When `take` has something again; None: only after a failure, or never."""
        if self._waiting or (self._again_s is not None and self._under_way):
            return self._next_at
        return None

    @property
    def lost(self) -> bool:
        """Whether every address has failed."""
        return not self._waiting and not self._under_way

    def error(self) -> OSError:
        """Why there is no connection, in words, with what each address met. Its `errno` is that of
        all of them, or ETIMEDOUT where one did not answer, or the first one's."""
        met = {address: _reason(error) for address, error in self._errors.items()}
        met |= {a: "no answer" for a in (*self._under_way, *self._waiting) if a not in met}
        silent = len(met) > len(self._errors) or not self._errors
        first = next(iter(self._errors.values()), None)
        code = errno.ETIMEDOUT if silent or first is None else first.errno or errno.EIO
        if len(set(met.values())) == 1:
            (reason,) = set(met.values())
            where = f" ({', '.join(map(str, met))})" if len(met) > 1 else ""
            return OSError(code, reason + where)
        return OSError(code, "; ".join(f"{address}: {reason}" for address, reason in met.items()))


def _reason(error: OSError) -> str:
    """The system's own words; those of event loops differ, and name the address too."""
    return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__


def open_socket(address: Address) -> socket.socket:
    """A TCP socket for `address`, not connected, that does not block."""
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    sock.settimeout(0)
    return sock
