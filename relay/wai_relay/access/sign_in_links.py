"""Links that sign a browser in once, without the admin token.

A link holds a random secret behind a `#`, which browsers send to nobody. Only the SHA-256 of the
secret is kept, in memory: a restart ends all links.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from typing import Final

import msgspec

from wai_protocol.errors import AuthError, Fault

from .admins import Admins

LINK_PREFIX: Final = "wai_lk_"
LINK_S: Final = 600.0
"""Long enough to carry a link from a terminal to a browser, perhaps through a chat with oneself."""
MAX_LINKS: Final = 32  # beyond it the oldest one ends
_SECRET_BYTES: Final = 32


class _Link(msgspec.Struct, frozen=True):
    admin: str
    token_mark: bytes
    expires_at: float


class SignInLinks:
    """The links that were not used yet. Belongs to one event loop."""

    def __init__(self, admins: Admins, clock: Callable[[], float]) -> None:
        """`clock`: returns seconds since 1970."""
        self._admins = admins
        self._clock = clock
        self._by_hash: dict[bytes, _Link] = {}

    def make(self, admin: str) -> tuple[str, float]:
        """Return the secret of a new link for `admin`, and until when it is good."""
        while len(self._by_hash) >= MAX_LINKS:
            del self._by_hash[next(iter(self._by_hash))]
        secret = LINK_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        expires_at = self._clock() + LINK_S
        link = _Link(admin, self._admins.mark_of(admin), expires_at)
        self._by_hash[hashlib.sha256(secret.encode()).digest()] = link
        return secret, expires_at

    def redeem(self, secret: bytes) -> str:
        """Return the admin whom this link signs in, and end the link.

        Raises `AuthError` (KEY_INVALID) if the link is not known or has expired, and if its admin
        was revoked or has another token since.
        """
        link = self._by_hash.pop(hashlib.sha256(secret).digest(), None)
        good = (
            link is not None
            and self._clock() < link.expires_at
            and self._admins.knows(link.admin)
            and hmac.compare_digest(self._admins.mark_of(link.admin), link.token_mark)
        )
        if link is None or not good:
            raise AuthError(
                "this sign-in link was used already or has expired; make a new one with"
                " `wai sign-in link`",
                Fault.KEY_INVALID,
            )
        return link.admin


def sign_in_url(relay_url: str, secret: str) -> str:
    """Return the link that signs a browser in by `secret`."""
    return f"{relay_url}/dashboard/#sign-in={secret}"
