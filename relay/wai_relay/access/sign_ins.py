"""Browsers that are signed in: a random cookie each, of which only the SHA-256 is kept.

A sign-in ends when its admin signs out, is revoked, or after `SIGN_IN_S`; it outlives a restart of
the relay. What a browser sends by itself (the cookie) is not enough to change anything: a change
also carries a token that is derived from the cookie and known to our own page alone.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wai_protocol.errors import AuthError, Fault, StoreError
from wai_relay.storage import Store, Write

from .admins import Admins

COOKIE: Final = "__Host-wai"
CSRF_HEADER: Final = "x-wai-csrf"
SIGN_IN_S: Final = 30 * 86400.0  # a month: the token is long, and asking often trains to paste it
MAX_SIGN_INS: Final = 1000  # a few admins with a few browsers; then the oldest is signed out
_COOKIE_BYTES: Final = 32
_MAX_COOKIE_CHARS: Final = 64  # what a stranger may make us hash

_log = logging.getLogger("wai.relay")


@dataclass(frozen=True, slots=True)
class SignIn:
    """A browser of `admin`; times are seconds since 1970."""

    sha256: bytes
    admin: str
    created_at: float
    expires_at: float


class SignIns:
    """All that are good. Make it with `load`; belongs to one event loop."""

    def __init__(self, store: Store, admins: Admins, clock: Callable[[], float]) -> None:
        self._store = store
        self._admins = admins
        self._clock = clock
        self._by_hash: dict[bytes, SignIn] = {}

    @classmethod
    async def load(
        cls, store: Store, admins: Admins, clock: Callable[[], float] = time.time
    ) -> SignIns:
        """Those that the store knows."""
        sign_ins = cls(store, admins, clock)
        try:
            await store.write(Write("DELETE FROM sign_ins WHERE expires_at <= $1", (clock(),)))
        except StoreError as error:  # `find` refuses them anyway
            _log.warning("sign-ins that are over stay in the database: %s", error)
        for row in await store.read("SELECT * FROM sign_ins ORDER BY created_at"):
            known = SignIn(row["cookie_sha256"], row["admin"], row["created_at"], row["expires_at"])
            sign_ins._by_hash[known.sha256] = known
        return sign_ins

    async def begin(self, token: bytes) -> tuple[SignIn, str]:
        """Sign in by an admin token: the sign-in and its cookie's value. Raises `AuthError`."""
        admin = self._admins.authenticate(token)
        now = self._clock()
        cookie = secrets.token_urlsafe(_COOKIE_BYTES)
        sign_in = SignIn(_hash(cookie), admin, now, now + SIGN_IN_S)
        while len(self._by_hash) >= MAX_SIGN_INS:
            await self._forget(next(iter(self._by_hash)))
        await self._store.write(
            Write(
                "INSERT INTO sign_ins (cookie_sha256, admin, created_at, expires_at)"
                " VALUES ($1, $2, $3, $4)",
                (sign_in.sha256, admin, sign_in.created_at, sign_in.expires_at),
            )
        )
        self._by_hash[sign_in.sha256] = sign_in
        return sign_in, cookie

    def find(self, cookie: str) -> SignIn:
        """The sign-in of a cookie's value. Raises `AuthError` (KEY_INVALID)."""
        # The hash is looked up, not compared: what a wrong guess takes tells nothing of the cookie.
        found = self._by_hash.get(_hash(cookie[:_MAX_COOKIE_CHARS]))
        if (
            found is None
            or self._clock() >= found.expires_at
            or not self._admins.knows(found.admin)
        ):
            raise AuthError("sign in first", Fault.KEY_INVALID)
        return found

    async def end(self, sign_in: SignIn) -> None:
        """Sign out."""
        await self._forget(sign_in.sha256)

    def forget_admin(self, name: str) -> None:
        """Know no browser of an admin who was revoked (`Admins.revoke` has told the store)."""
        for known in [one for one in self._by_hash.values() if one.admin == name]:
            del self._by_hash[known.sha256]

    async def _forget(self, sha256: bytes) -> None:
        self._by_hash.pop(sha256, None)
        await self._store.write(Write("DELETE FROM sign_ins WHERE cookie_sha256 = $1", (sha256,)))


def csrf_token(cookie: str) -> str:
    """What a page must send along with a change, beside the cookie itself."""
    return hmac.digest(cookie.encode(), b"wai dashboard csrf", "sha256").hex()


def check_csrf(cookie: str, sent: str) -> None:
    """Raises `AuthError` (FORBIDDEN) unless `sent` is the cookie's token."""
    if not hmac.compare_digest(csrf_token(cookie).encode(), sent.encode("utf-8", "replace")):
        raise AuthError("this change did not come from the dashboard's own page", Fault.FORBIDDEN)


def _hash(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).digest()
