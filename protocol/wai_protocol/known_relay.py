"""What one has to know of a relay to reach it and to recognise it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownRelay:
    """One relay: where nodes reach it, its Ed25519 key, and what its certificate is known by (see
    `wai_protocol.invite.Invite.pin`)."""

    url: str
    public: bytes
    pin: bytes | None = None
