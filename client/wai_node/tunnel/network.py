"""Notices that the world moved: the machine slept, or the way to the relay leads elsewhere now.

A connection from before is dead then, but says so only when its keepalive runs out; dialling again
at once is cheap, since the session resumes. A node that waits for its next try, or whose dial gets
no answer, is woken too. Tells of both by a callback; does nothing else.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

LOOK_EVERY_S: Final = 1.0
"""Two system calls a second, so that a laptop that wakes is back within one."""

JUMP_S: Final = 3.0
"""More than this beyond what the loop slept is sleep, or a process that was stopped: no scheduler
on a busy box is that late, and a redial that was not needed costs one round trip."""


class JumpDetector:
    """Compares two clocks: one stops while the machine sleeps, the other does not."""

    def __init__(self, asleep_too_s: float) -> None:
        self._expected_s = asleep_too_s

    def observe(self, asleep_too_s: float, slept_for_s: float) -> bool:
        """Whether the clock that runs during sleep went on by more than we waited."""
        jumped = asleep_too_s - self._expected_s > slept_for_s + JUMP_S
        self._expected_s = asleep_too_s
        return jumped


def boot_time_s() -> float:
    """Seconds since boot, sleep included (Linux); elsewhere the wall clock is the nearest to it."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.time() if clock is None else time.clock_gettime(clock)


def source_address(host: str, port: int) -> str | None:
    """The address that this machine would use towards `host` now; None if there is no way.

    Asks the kernel's routing table by connecting a UDP socket: no packet is sent. `host` is an
    address, not a name.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            address = probe.getsockname()[0]
    except OSError:
        return None
    return address if isinstance(address, str) else None


@dataclass(frozen=True, slots=True)
class NetworkRoute:
    """The way to the relay. `ours` is our address on a connection, None while there is none."""

    ours: str | None
    relay: str
    port: int


ANY_ROUTE: Final = NetworkRoute(None, "192.0.2.1", 443)
"""Before the relay's address is known: an address of the range that is kept for documentation
(RFC 5737), to which the default route leads. Nothing is ever sent there."""


class RouteWatch:
    """Finds out, by looking again and again, whether the address towards a relay has changed."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], str | None] = {}

    def observe(self, route: NetworkRoute, source: str | None) -> str | None:
        """What happened, in words, if `source`, our address towards the relay, is not what it was.
        None: nothing that a new dial could be better for."""
        key = (route.relay, route.port)
        before = self._seen.get(key, source) if route.ours is None else route.ours
        self._seen[key] = source
        if source is None or source == before:
            return None
        if before is None:
            return f"the network is back, with the address {source}"
        return f"our address changed from {before} to {source}"

    def keep_only(self, routes: list[NetworkRoute]) -> None:
        """Forget what is not looked at any more."""
        kept = {(route.relay, route.port) for route in routes}
        self._seen = {key: seen for key, seen in self._seen.items() if key in kept}


async def watch_network(
    on_moved: Callable[[str], None],
    routes: Callable[[], list[NetworkRoute]],
    *,
    every_s: float = LOOK_EVERY_S,
) -> None:
    """Call `on_moved` with a reason whenever it is time to dial anew, for ever: a connection, or a
    dial that is under way, can't be trusted any more, or there is a network again.

    `routes` gives the way of each tunnel.
    """
    detector, watch = JumpDetector(boot_time_s()), RouteWatch()
    while True:
        await asyncio.sleep(every_s)
        jumped = detector.observe(boot_time_s(), every_s)
        looked_at = routes()
        changes = [watch.observe(r, source_address(r.relay, r.port)) for r in set(looked_at)]
        watch.keep_only(looked_at)
        if jumped:
            on_moved("the clock jumped")
        elif change := next((c for c in changes if c is not None), None):
            on_moved(change)
