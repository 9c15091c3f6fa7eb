"""The inference servers beside the node: one file a kind, detection, the board and the watch."""

from .board import Board
from .consent import Consent, Verdict
from .detect import find_upstreams, identify, look_around, upstream_at
from .kinds import KINDS, UpstreamKinds, installed_kinds
from .upstream import Probe, Upstream
from .watch import Watch

__all__ = [
    "KINDS",
    "Board",
    "Consent",
    "Probe",
    "Upstream",
    "UpstreamKinds",
    "Verdict",
    "Watch",
    "find_upstreams",
    "identify",
    "installed_kinds",
    "look_around",
    "upstream_at",
]
