"""Sign-ins of browsers: each has a random cookie, of which only the SHA-256 is stored.

A sign-in ends when the browser signs out, when an admin ends it, when the admin token that it was
made with is replaced or its admin is revoked, or after `SIGN_IN_S`. It outlives a restart of the
relay. Against CSRF, a request that changes something must also carry a token that is derived from
the cookie, which only the dashboard's own page can read.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Final

import msgspec
from msgspec.structs import replace

from wai_protocol.errors import AuthError, Fault, RequestError, StoreError
from wai_relay.storage import Row, Store, Write, undone_by_restart

from .admins import Admins
from .sign_in_links import LINK_PREFIX, SignInLinks

COOKIE: Final = "__Host-wai"
CSRF_HEADER: Final = "x-wai-csrf"
# A month. Who must paste the token often will paste it without care.
SIGN_IN_S: Final = 30 * 86400.0
MAX_SIGN_INS: Final = 1000  # beyond it the oldest one is ended
USED_S: Final = 60.0  # how old `used_at` may be; an open page sends a request every few seconds
MAX_USER_AGENT_CHARS: Final = 256  # the longest real ones have 200
MAX_ADDRESS_CHARS: Final = 64  # an IPv6 address with its zone
_COOKIE_BYTES: Final = 32
_MAX_COOKIE_CHARS: Final = 64  # bounds the work for a cookie of an unauthenticated peer

_log = logging.getLogger("wai.relay")


class SignIn(msgspec.Struct, frozen=True):
    """A signed-in browser of `admin`. Times are seconds since 1970.

    `token_mark`: identifies the admin token that was used (`Admins.mark_of`). `address`: the IP
    address that the sign-in came from; behind a proxy it is the proxy's.
    """

    id: str
    sha256: bytes
    admin: str
    token_mark: bytes
    created_at: float
    expires_at: float
    used_at: float
    address: str = ""
    user_agent: str = ""


class SignIns:
    """All valid sign-ins. Make it with `load`. Belongs to one event loop."""

    def __init__(self, store: Store, admins: Admins, clock: Callable[[], float]) -> None:
        self._store = store
        self._admins = admins
        self._clock = clock
        self.links = SignInLinks(store, admins, clock)
        self._by_hash: dict[bytes, SignIn] = {}
        self._unwritten: dict[str, SignIn] = {}
        """Sign-ins by id that have ended, but are still in the store: a restart would undo it."""
        self._changing = asyncio.Lock()
        """Held while a change is written, and while others' changes are read."""

    @classmethod
    async def load(
        cls, store: Store, admins: Admins, clock: Callable[[], float] = time.time
    ) -> SignIns:
        """Load the sign-ins from the store that are still valid. Raises `StoreError`."""
        sign_ins = cls(store, admins, clock)
        await sign_ins.follow()
        try:
            await sign_ins._end([one for one in sign_ins._by_hash.values() if sign_ins._over(one)])
        except StoreError as error:  # they are refused nevertheless
            _log.warning("sign-ins that have ended could not be deleted: %s", error)
        return sign_ins

    async def follow(self) -> None:
        """Take over what the store has: at another relay one began or ended. Raises `StoreError`.

        When each was used last, this relay knows of itself alone.
        """
        with contextlib.suppress(StoreError):
            await self._end(())  # those that could not be deleted before
        async with self._changing:
            rows = await self._store.read("SELECT * FROM sign_ins ORDER BY created_at")
            before, self._by_hash = self._by_hash, {}
            for stored in map(_from_row, rows):
                if stored.id not in self._unwritten:
                    self._by_hash[stored.sha256] = before.get(stored.sha256, stored)

    async def begin(
        self, token: bytes, *, address: str = "", user_agent: str = ""
    ) -> tuple[SignIn, str]:
        """Sign in with an admin token, or the secret of a link; return the sign-in and the value of
        its cookie.

        Raises `AuthError` for an unknown token or a link that is no longer good, and `StoreError`.
        """
        if token.startswith(LINK_PREFIX.encode()):
            admin = await self.links.redeem(token)
        else:
            admin = self._admins.authenticate(token)
        now = self._clock()
        cookie = secrets.token_urlsafe(_COOKIE_BYTES)
        sign_in = SignIn(
            id="si_" + secrets.token_hex(8),
            sha256=_hash(cookie),
            admin=admin,
            token_mark=self._admins.mark_of(admin),
            created_at=now,
            expires_at=now + SIGN_IN_S,
            used_at=now,
            address=address[:MAX_ADDRESS_CHARS],
            user_agent=user_agent[:MAX_USER_AGENT_CHARS],
        )
        while len(self._by_hash) >= MAX_SIGN_INS:
            await self._end([next(iter(self._by_hash.values()))])
        async with self._changing:
            await self._store.write(
                Write(
                    "INSERT INTO sign_ins (cookie_sha256, id, admin, token_mark, created_at,"
                    " expires_at, used_at, address, user_agent)"
                    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                    (
                        *(sign_in.sha256, sign_in.id, admin, sign_in.token_mark),
                        *(sign_in.created_at, sign_in.expires_at, sign_in.used_at),
                        *(sign_in.address, sign_in.user_agent),
                    ),
                )
            )
            self._by_hash[sign_in.sha256] = sign_in
        return sign_in, cookie

    def find(self, cookie: str) -> SignIn:
        """Return the sign-in with this cookie. Raises `AuthError` (KEY_INVALID)."""
        # The hash is looked up, so that the duration reveals nothing about a valid cookie.
        found = self._by_hash.get(_hash(cookie[:_MAX_COOKIE_CHARS]))
        if found is None or self._over(found):
            raise AuthError("sign in first", Fault.KEY_INVALID)
        now = self._clock()
        if now - found.used_at >= USED_S:
            found = self._by_hash[found.sha256] = replace(found, used_at=now)
            self._note_use(found)
        return found

    def _note_use(self, sign_in: SignIn) -> None:
        """Store the time of the last use, unless the store is overloaded."""
        used = "UPDATE sign_ins SET used_at = $1 WHERE cookie_sha256 = $2"
        try:
            self._store.submit(Write(used, (sign_in.used_at, sign_in.sha256)))
        except StoreError as error:
            _log.debug("the last use of a sign-in was not stored: %s", error)

    def list(self) -> list[SignIn]:
        """Return the valid sign-ins, the last used one first."""
        good = [one for one in self._by_hash.values() if not self._over(one)]
        return sorted(good, key=lambda one: one.used_at, reverse=True)

    async def end(self, sign_in: SignIn) -> None:
        """End a sign-in at once. Raises `StoreError` if a restart would undo it."""
        await self._end([sign_in])

    async def end_by_id(self, sign_in_id: str) -> SignIn:
        """End the sign-in with this id, and return it.

        Raises `RequestError` (NOT_FOUND), or `StoreError` as `end` does; then it may be called
        again.
        """
        found = self._unwritten.get(sign_in_id)
        if found is None:
            found = next((one for one in self._by_hash.values() if one.id == sign_in_id), None)
        if found is None:
            raise RequestError(f"there is no sign-in {sign_in_id[:80]!r}", Fault.NOT_FOUND)
        await self._end([found])
        return found

    async def end_all(self, *, but: str = "") -> None:
        """End every sign-in, except the one with the id `but`. Raises `StoreError` as `end`."""
        await self._end([one for one in self._by_hash.values() if one.id != but])

    def forget_admin(self, name: str) -> None:
        """Drop the sign-ins of a revoked admin. `Admins.revoke` has deleted them in the store."""
        for known in [one for one in self._by_hash.values() if one.admin == name]:
            del self._by_hash[known.sha256]

    def _over(self, sign_in: SignIn) -> bool:
        """Whether a sign-in has expired, or its admin has another token or is revoked."""
        return (
            self._clock() >= sign_in.expires_at
            or not self._admins.knows(sign_in.admin)
            or not hmac.compare_digest(self._admins.mark_of(sign_in.admin), sign_in.token_mark)
        )

    async def _end(self, ended: Iterable[SignIn]) -> None:
        """End sign-ins at once, and delete them in the store, with those of earlier failures."""
        for one in ended:
            self._by_hash.pop(one.sha256, None)
            self._unwritten[one.id] = one
        unwritten = dict(self._unwritten)
        if not unwritten:
            return
        forget = "DELETE FROM sign_ins WHERE cookie_sha256 = $1"
        try:
            async with self._changing:
                await self._store.write(
                    *(Write(forget, (one.sha256,)) for one in unwritten.values())
                )
        except StoreError as error:
            raise undone_by_restart("the sign-in is ended", error, self._store) from error
        for sign_in_id in unwritten:
            self._unwritten.pop(sign_in_id, None)


def _from_row(row: Row) -> SignIn:
    return SignIn(
        id=row["id"],
        sha256=row["cookie_sha256"],
        admin=row["admin"],
        token_mark=row["token_mark"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        used_at=row["used_at"],
        address=row["address"],
        user_agent=row["user_agent"],
    )


def csrf_token(cookie: str) -> str:
    """Return the token that a page must send with a change, besides the cookie itself."""
    return hmac.digest(cookie.encode(), b"wai dashboard csrf", "sha256").hex()


def check_csrf(cookie: str, sent: str) -> None:
    """Raise `AuthError` (FORBIDDEN) unless `sent` is the cookie's CSRF token."""
    if not hmac.compare_digest(csrf_token(cookie).encode(), sent.encode("utf-8", "replace")):
        raise AuthError("this change did not come from the dashboard's own page", Fault.FORBIDDEN)


def _hash(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).digest()
