"""Links that sign a browser in once, without the admin token.

A link holds a random secret behind a `#`, which browsers send to nobody. Only the SHA-256 of the
secret is kept: in a store that other relays share, since a browser may open the link at any of
them; else in memory, and a restart ends all links.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from typing import Final

import msgspec

from wai_protocol.errors import AuthError, Fault
from wai_relay.storage import ConflictError, Store, Write

from .admins import Admins

LINK_PREFIX: Final = "wai_lk_"
LINK_S: Final = 600.0
"""Long enough to carry a link from a terminal to a browser, perhaps through a chat with oneself."""
MAX_LINKS: Final = 32  # beyond it the oldest one ends
_SECRET_BYTES: Final = 32

_KEEP: Final = """\
INSERT INTO sign_in_links (secret_sha256, admin, token_mark, expires_at) VALUES ($1, $2, $3, $4)"""
_DROP_OLD: Final = """\
DELETE FROM sign_in_links WHERE expires_at < $1 OR secret_sha256 NOT IN
(SELECT secret_sha256 FROM sign_in_links ORDER BY expires_at DESC LIMIT $2)"""
_FIND: Final = "SELECT * FROM sign_in_links WHERE secret_sha256 = $1"
_TAKE: Final = "DELETE FROM sign_in_links WHERE secret_sha256 = $1"


class _Link(msgspec.Struct, frozen=True):
    admin: str
    token_mark: bytes
    expires_at: float


class SignInLinks:
    """The links that were not used yet. Belongs to one event loop."""

    def __init__(self, store: Store, admins: Admins, clock: Callable[[], float]) -> None:
        """`clock`: returns seconds since 1970."""
        self._store = store
        self._admins = admins
        self._clock = clock
        self._by_hash: dict[bytes, _Link] = {}

    async def make(self, admin: str) -> tuple[str, float]:
        """Return the secret of a new link for `admin`, and until when it is good. Raises
        `StoreError`."""
        secret = LINK_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        expires_at = self._clock() + LINK_S
        link = _Link(admin, self._admins.mark_of(admin), expires_at)
        await self._keep(hashlib.sha256(secret.encode()).digest(), link)
        return secret, expires_at

    async def redeem(self, secret: bytes) -> str:
        """Return the admin whom this link signs in, and end the link.

        Raises `AuthError` (KEY_INVALID) if the link is not known or has expired, and if its admin
        was revoked or has another token since; `StoreError`.
        """
        link = await self._take(hashlib.sha256(secret).digest())
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

    async def _keep(self, digest: bytes, link: _Link) -> None:
        if self._store.shared:
            await self._store.write(
                Write(_DROP_OLD, (self._clock(), MAX_LINKS - 1)),
                Write(_KEEP, (digest, link.admin, link.token_mark, link.expires_at)),
            )
            return
        while len(self._by_hash) >= MAX_LINKS:
            del self._by_hash[next(iter(self._by_hash))]
        self._by_hash[digest] = link

    async def _take(self, digest: bytes) -> _Link | None:
        """Take a link away, that nobody else has it; None if there is none."""
        if not self._store.shared:
            return self._by_hash.pop(digest, None)
        rows = await self._store.read(_FIND, digest)
        if not rows:
            return None
        try:
            await self._store.write(Write(_TAKE, (digest,), rows=1))
        except ConflictError:
            return None
        return _Link(rows[0]["admin"], rows[0]["token_mark"], rows[0]["expires_at"])


def sign_in_url(relay_url: str, secret: str) -> str:
    """Return the link that signs a browser in by `secret`."""
    return f"{relay_url}/dashboard/#sign-in={secret}"
