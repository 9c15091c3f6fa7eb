"""Faults of a node, its tunnel and its upstream, one function for each.

A function injects the fault, and returns when the fault has ended; recovery may take longer.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.harness.cluster import Cluster
from tests.harness.fault_proxy import BOTH_WAYS, FaultProxy, Way

DEAD_S: Final = 2.5
"""Keepalive deadline of relay and nodes here: half-open connections are found within it."""

_UP: Final = frozenset({Way.TO_TARGET})
_DOWN: Final = frozenset({Way.TO_DIALLER})


@dataclass(slots=True)
class Box:
    """A node with a proxy on each side. `down`: the times at which its process did not run."""

    cluster: Cluster
    name: str
    tunnel: FaultProxy
    upstream: FaultProxy
    options: tuple[str, ...]
    down: list[tuple[float, float]] = field(default_factory=list)
    restarts: int = 0

    def start(self) -> None:
        """Start the node, and wait until it is connected."""
        log = self.cluster.nodes[self.name].daemon
        seen = len(log.output())
        daemon = self.cluster.start_node(self.name, *self.options).daemon
        daemon.wait_for_output("connected to the relay", after=seen)

    def kill(self, gone_s: float) -> None:
        """Kill the node, and start it again after `gone_s`."""
        began_at = time.monotonic()
        self.cluster.nodes[self.name].daemon.kill()
        time.sleep(gone_s)
        self.start()
        self.down.append((began_at, time.monotonic()))
        self.restarts += 1


Fault = Callable[[Box, random.Random], None]


def _reset(box: Box, dice: random.Random) -> None:
    box.tunnel.reset()


def _reset_within_a_frame(box: Box, dice: random.Random) -> None:
    box.tunnel.reset_after(dice.randrange(1, 20_000))
    time.sleep(0.5)


def _close(box: Box, dice: random.Random) -> None:
    box.tunnel.cut()


def _delay(box: Box, dice: random.Random) -> None:
    _for_a_while(box.tunnel, dice, lambda: box.tunnel.delay(dice.uniform(0.01, 0.4)))


def _slow(box: Box, dice: random.Random) -> None:
    _for_a_while(box.tunnel, dice, lambda: box.tunnel.limit_rate(dice.uniform(60e3, 400e3)))


def _split(box: Box, dice: random.Random) -> None:
    _for_a_while(box.tunnel, dice, lambda: box.tunnel.split(dice.randrange(40, 300)))


def _stall(ways: frozenset[Way]) -> Fault:
    def stall(box: Box, dice: random.Random) -> None:
        box.tunnel.stall(ways)
        time.sleep(dice.uniform(0.1, 1.5 * DEAD_S))
        box.tunnel.clear()

    return stall


def _refuse(box: Box, dice: random.Random) -> None:
    box.tunnel.refuse()
    time.sleep(dice.uniform(2.0, 6.0))  # many tries fail at once; the sessions live longer
    box.tunnel.clear()


def _flap(box: Box, dice: random.Random) -> None:
    for _ in range(dice.randrange(3, 12)):
        box.tunnel.reset()
        time.sleep(dice.uniform(0.1, 1.3))


def _half_open(ways: frozenset[Way]) -> Fault:
    def abandon(box: Box, dice: random.Random) -> None:
        box.tunnel.abandon(ways)
        time.sleep(dice.uniform(0.1, 1.0))

    return abandon


def _stop(box: Box, dice: random.Random) -> None:
    daemon = box.cluster.nodes[box.name].daemon
    daemon.pause()
    time.sleep(dice.uniform(0.2, 4.0))
    daemon.resume()


def _kill(box: Box, dice: random.Random) -> None:
    box.kill(dice.uniform(0.0, 1.0))


TUNNEL_FAULTS: Final[Mapping[str, tuple[int, Fault]]] = {
    "reset": (22, _reset),
    "reset within a frame": (12, _reset_within_a_frame),
    "orderly close": (12, _close),
    "delay": (8, _delay),
    "low rate": (5, _slow),
    "tiny pieces": (6, _split),
    "stall": (6, _stall(BOTH_WAYS)),
    "stall towards the relay": (4, _stall(_UP)),
    "stall towards the node": (4, _stall(_DOWN)),
    "refused for long": (2, _refuse),
    "flapping": (3, _flap),
    "half-open": (4, _half_open(BOTH_WAYS)),
    "half-open towards the relay": (3, _half_open(_UP)),
    "half-open towards the node": (3, _half_open(_DOWN)),
    "node stopped and continued": (5, _stop),
    "node killed": (3, _kill),
}


def _upstream_reset(box: Box, dice: random.Random) -> None:
    box.upstream.reset()


def _upstream_delay(box: Box, dice: random.Random) -> None:
    _for_a_while(box.upstream, dice, lambda: box.upstream.delay(dice.uniform(0.01, 0.5)))


def _upstream_stall(box: Box, dice: random.Random) -> None:
    _for_a_while(box.upstream, dice, box.upstream.stall)


def _upstream_split(box: Box, dice: random.Random) -> None:
    _for_a_while(box.upstream, dice, lambda: box.upstream.split(dice.randrange(20, 200)))


UPSTREAM_FAULTS: Final[Mapping[str, tuple[int, Fault]]] = {
    "upstream reset": (2, _upstream_reset),
    "upstream delay": (5, _upstream_delay),
    "upstream stall": (4, _upstream_stall),
    "upstream in tiny pieces": (5, _upstream_split),
}


def _for_a_while(proxy: FaultProxy, dice: random.Random, worsen: Callable[[], None]) -> None:
    worsen()
    time.sleep(dice.uniform(0.3, 1.5))
    proxy.clear()
