"""The gateway's bounds: how long it waits and how much it holds. Values only.

Each is a setting; the defaults are the documented ones (docs/http-api.md).
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """Bounds of one request, and of all of them together where the name says `total`."""

    body_bytes: int = 64 * MIB
    """A longer request body is refused with 413."""
    routing_body_bytes: int = MIB
    """A body up to this is read whole before it is routed, and can be sent again to another node.
    128k tokens of text are half of it. Of a longer one only the way to its `model` is read."""
    late_model_bytes: int = 32 * MIB
    """How far into a longer body `model` may come. The SDKs put it behind `messages`, images and
    all, and `curl -F file=@… -F model=…` behind the recording, whose own limit is 25 MB."""
    held_total_bytes: int = 256 * MIB
    """All request bodies held at one time; above it, 503 rather than the whole process's memory."""
    first_byte_s: float = 600.0
    """From sending a request to its answer's first byte: a long prompt on a slow box, or a model
    that is loaded from disk first."""
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
