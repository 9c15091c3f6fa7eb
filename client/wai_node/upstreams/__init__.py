"""The inference servers beside the node: one file a kind, detection, the board and the watch."""

from .board import Board
from .consent import Consent, Verdict
from .detect import find_upstreams, identify, look_around, upstream_at
from .upstream import Probe, Upstream
from .watch import Watch

__all__ = [
    "Board",
    "Consent",
    "Probe",
    "Upstream",
    "Verdict",
    "Watch",
    "find_upstreams",
    "identify",
    "look_around",
    "upstream_at",
]
