"""The gateway's bounds: how long it waits and how much it holds. Values only.

Each is a setting; the defaults are the documented ones (docs/http-api.md).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from wai_protocol.errors import RequestError

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """Bounds of one request, and of all of them together where the name says `total`."""

    body_bytes: int = 64 * MIB
    """A longer request body is refused with 413."""
    routing_body_bytes: int = MIB
    """A body up to this is read in one go; 128k tokens of text are half of it. A longer one is read
    as it comes, and may be held on disk."""
    held_total_bytes: int = 256 * MIB
    """All request bodies held in memory at one time, long ones half of it; above it, they go to
    disk rather than into the whole process's memory."""
    spooled_total_bytes: int = 2048 * MIB
    """All request bodies held on disk at one time; above it, 503. 0: none is."""
    first_byte_s: float = 600.0
    """From sending a request to its answer's first content, comments and roles aside: a long prompt
    on a slow box, or a model that is loaded from disk first. Then another upstream is tried."""
    between_chunks_s: float = 300.0
    """Silence in the middle of an answer."""
    heartbeat_s: float = 15.0
    """How long a streaming caller waits before it is sent a comment, and between two of them:
    proxies on the way cut a silent response after 60 s or more."""
    attempts: int = 3
    """Upstreams tried for one request. More would only spread one bad request over the fleet."""
    translate: bool = True
    """Whether a request in a dialect that the model's server lacks is translated to chat
    completions; else it is refused."""

    def __post_init__(self) -> None:
        for limit in fields(self):
            least = _LEAST.get(limit.name, 1)
            value = getattr(self, limit.name)
            if limit.name == "translate":
                continue
            if not value >= least:  # nor is NaN
                raise RequestError(f"gateway.{limit.name} is {least} or more, and not {value}")


# Nothing need be held on disk, and seconds may be fractions.
_LEAST: Final = {
    "spooled_total_bytes": 0,
    "first_byte_s": 0.001,
    "between_chunks_s": 0.001,
    "heartbeat_s": 0.001,
}
