"""Other ways to reach a server behind NAT, each started with a configuration of its own.

A peer is a module with `NAME`, `missing()` (why it can't run here, or None) and `start(place)`,
which brings up the whole path to the place's origin (app → TLS → public side → TLS tunnel → agent →
plain HTTP, unless its docstring says otherwise) and gives the target to load.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.clients import Target
from bench.peers import chisel, floor, frp, haproxy, litellm, nginx, openssh, rathole, viaduct
from bench.place import Place


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer: its name in tables, why it can't run here (None: it can), and how to start it."""

    name: str
    missing: Callable[[], str | None]
    start: Callable[[Place], Target]


PEERS: Final = tuple(
    Peer(module.NAME, module.missing, module.start)
    for module in (floor, haproxy, nginx, openssh, rathole, frp, chisel, viaduct, litellm)
)
