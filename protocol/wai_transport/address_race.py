"""Decide when to dial which address of a host (Happy Eyeballs, RFC 8305).

A state machine without I/O, to which the time is passed. The sockets are opened by `connecting`
(with an event loop) and `wai_cli.client.connecting` (without one). An address that does not answer
delays the next one by 0.25 s; one that fails does not delay it.
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
"""Time between two attempts (RFC 8305 section 8, "Connection Attempt Delay")."""

MAX_ADDRESSES: Final = 16
"""Addresses of one name that are used. The last of them is dialled after 4 s, which is within every
connect limit."""


class Address(NamedTuple):
    """An address family and a socket address, as `getaddrinfo` returns them."""

    family: int
    sockaddr: tuple[Any, ...]

    def __str__(self) -> str:
        return str(self.sockaddr[0])


def ordered(found: Iterable[tuple[Any, ...]]) -> list[Address]:
    """Return the results of `getaddrinfo` in the order in which to dial them (RFC 8305 section 4).

    The resolver's order (RFC 6724) is kept within a family. The families alternate, beginning with
    that of the first result.
    """
    unique = dict.fromkeys(Address(int(entry[0]), entry[4]) for entry in found)
    by_family: dict[int, list[Address]] = {}
    for address in unique:
        by_family.setdefault(address.family, []).append(address)
    rounds = itertools.zip_longest(*by_family.values())
    return [address for one_round in rounds for address in one_round if address][:MAX_ADDRESSES]


class AddressRace:
    """The attempts to connect to one host. The caller stops at the first that succeeds.

    `redial_s`: the addresses that have not answered are dialled again whenever so many seconds have
    passed, beside the attempts that are still waiting. The kernel repeats a lost SYN only after 1,
    3 and 7 s; after an outage of the network a new SYN succeeds sooner. None: dial each address
    once.
    """

    def __init__(
        self, addresses: list[Address], now: float, *, redial_s: float | None = None
    ) -> None:
        self._waiting = deque(addresses)
        self._under_way: list[Address] = []
        self._errors: dict[Address, OSError] = {}
        self._redial_s = redial_s
        self._next_at = now

    def take(self, now: float) -> Address | None:
        """Return an address to dial now, or None. Call it again until it returns None."""
        if now < self._next_at:
            return None
        if not self._waiting and self._redial_s is not None:
            self._waiting.extend(dict.fromkeys(self._under_way))
        if not self._waiting:
            return None
        address = self._waiting.popleft()
        self._under_way.append(address)
        pause_s = STAGGER_S if self._waiting or self._redial_s is None else self._redial_s
        self._next_at = now + pause_s
        return address

    def failed(self, address: Address, error: OSError, now: float) -> None:
        """Note that an attempt failed: the next address may be dialled at once."""
        self._under_way.remove(address)
        self._errors[address] = error
        if self._waiting:
            self._next_at = now

    def next_deadline(self) -> float | None:
        """Return when `take` has another address; None: only after a failure, or never."""
        if self._waiting or (self._redial_s is not None and self._under_way):
            return self._next_at
        return None

    @property
    def all_failed(self) -> bool:
        """Whether every address has failed."""
        return not self._waiting and not self._under_way

    def error(self) -> OSError:
        """Return an error that says why there is no connection, with the reason of each address.

        Its `errno` is ETIMEDOUT if an address did not answer, else that of the first failure.
        """
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
    """Return the system's text for `error`, which is the same with every event loop."""
    return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__


def open_socket(address: Address) -> socket.socket:
    """Return a non-blocking TCP socket for `address` that is not connected yet."""
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    sock.settimeout(0)
    return sock
