"""What one has to know of a relay to reach it and to recognise it."""

from __future__ import annotations

import re
from typing import Final

import msgspec

_PLACE: Final = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[^\[\]:/@\s]{1,253}):([0-9]{1,5})")
_LARGEST_PORT: Final = 65535


class KnownRelay(msgspec.Struct, frozen=True):
    """One relay: where nodes reach it, its Ed25519 key, and what its certificate is known by (see
    `wai_protocol.invite.Invite.pin`).

    `dial`: the HOST:PORT to connect to, where that is not the URL's: relays with one domain show a
    certificate for its name, and each is reached at a name of its own. "" where there is none.
    """

    url: str
    public: bytes
    pin: bytes | None = None
    dial: str = ""


def is_place(text: object) -> bool:
    """Return whether `text` is HOST:PORT or [HOST]:PORT."""
    if not isinstance(text, str) or (found := _PLACE.fullmatch(text)) is None:
        return False
    return 0 < int(found[2]) <= _LARGEST_PORT
