"""The inference servers beside the node: one file a kind, detection, the board and the watch."""

from .board import Board
from .detect import find_upstreams, identify, upstream_at
from .upstream import Probe, Upstream
from .watch import Watch

__all__ = ["Board", "Probe", "Upstream", "Watch", "find_upstreams", "identify", "upstream_at"]
