"""Notices that the world moved: the machine slept, or the way to the relay leads elsewhere now.

A connection from before is dead then, but says so only when its keepalive runs out; dialling again
at once is cheap, since the session resumes. Tells of both by a callback; does nothing else.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
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


async def watch_network(
    on_moved: Callable[[str], None],
    peers: Callable[[], list[tuple[str, str, int]]],
    *,
    every_s: float = LOOK_EVERY_S,
) -> None:
    """Call `on_moved` with a reason whenever connections can't be trusted any more, for ever.

    `peers` gives, for each connection, our address on it, and the relay's address and port.
    """
    detector = JumpDetector(boot_time_s())
    while True:
        await asyncio.sleep(every_s)
        if detector.observe(boot_time_s(), every_s):
            on_moved("the clock jumped")
            continue
        for local, remote, port in peers():
            now = source_address(remote, port)
            if now is not None and now != local:
                on_moved(f"our address changed from {local} to {now}")
                break
