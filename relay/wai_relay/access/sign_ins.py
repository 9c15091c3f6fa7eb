"""Browsers that are signed in: a random cookie each, of which only the SHA-256 is kept.

A sign-in ends when its browser signs out, when an admin ends it, when the token that it was made by
is replaced or its admin is revoked, or after `SIGN_IN_S`; it outlives a restart of the relay. What
a browser sends by itself (the cookie) is not enough to change anything: a change also carries a
token that is derived from the cookie and known to our own page alone.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from wai_protocol.errors import AuthError, Fault, RequestError, StoreError
from wai_relay.storage import Store, Write, until_restart

from .admins import Admins

COOKIE: Final = "__Host-wai"
CSRF_HEADER: Final = "x-wai-csrf"
SIGN_IN_S: Final = 30 * 86400.0  # a month: the token is long, and asking often trains to paste it
MAX_SIGN_INS: Final = 1000  # a few admins with a few browsers; then the oldest is signed out
USED_S: Final = 60.0  # how old `used_at` may be: a page that is open asks every few seconds
MAX_USER_AGENT_CHARS: Final = 256  # the longest real ones have 200
MAX_ADDRESS_CHARS: Final = 64  # an IPv6 address with its zone
_COOKIE_BYTES: Final = 32
_MAX_COOKIE_CHARS: Final = 64  # what a stranger may make us hash

_log = logging.getLogger("wai.relay")


@dataclass(frozen=True, slots=True)
class SignIn:
    """A browser of `admin`; times are seconds since 1970.

    `token_mark` is of the token that it was made by (`Admins.mark_of`). `address` is where the
    sign-in came from: behind a proxy, the proxy.
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
    """All that are good. Make it with `load`; belongs to one event loop."""

    def __init__(self, store: Store, admins: Admins, clock: Callable[[], float]) -> None:
        self._store = store
        self._admins = admins
        self._clock = clock
        self._by_hash: dict[bytes, SignIn] = {}
        self._unwritten: dict[str, SignIn] = {}
        """Ended, but still in the store: a restart would undo that. By id."""

    @classmethod
    async def load(
        cls, store: Store, admins: Admins, clock: Callable[[], float] = time.time
    ) -> SignIns:
        """Those that the store knows and that are still good."""
        sign_ins = cls(store, admins, clock)
        for row in await store.read("SELECT * FROM sign_ins ORDER BY created_at"):
            known = SignIn(
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
            sign_ins._by_hash[known.sha256] = known
        try:
            await sign_ins._end([one for one in sign_ins._by_hash.values() if sign_ins._over(one)])
        except StoreError as error:  # they are refused all the same
            _log.warning("sign-ins that are over stay in the database: %s", error)
        return sign_ins

    async def begin(
        self, token: bytes, *, address: str = "", user_agent: str = ""
    ) -> tuple[SignIn, str]:
        """Sign in by an admin token: the sign-in and its cookie's value. Raises `AuthError`."""
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
        """The sign-in of a cookie's value. Raises `AuthError` (KEY_INVALID)."""
        # The hash is looked up, not compared: what a wrong guess takes tells nothing of the cookie.
        found = self._by_hash.get(_hash(cookie[:_MAX_COOKIE_CHARS]))
        if found is None or self._over(found):
            raise AuthError("sign in first", Fault.KEY_INVALID)
        now = self._clock()
        if now - found.used_at >= USED_S:
            found = self._by_hash[found.sha256] = replace(found, used_at=now)
            self._note_use(found)
        return found

    def _note_use(self, sign_in: SignIn) -> None:
        """Let the store know when it was used last, if it has time for that."""
        used = "UPDATE sign_ins SET used_at = $1 WHERE cookie_sha256 = $2"
        try:
            self._store.submit(Write(used, (sign_in.used_at, sign_in.sha256)))
        except StoreError as error:
            _log.debug("when a sign-in was used is not written: %s", error)

    def list(self) -> list[SignIn]:
        """Those that are good, the one that was used last first."""
        good = [one for one in self._by_hash.values() if not self._over(one)]
        return sorted(good, key=lambda one: one.used_at, reverse=True)

    async def end(self, sign_in: SignIn) -> None:
        """Sign out: from this call on. Raises `StoreError` if a restart would undo it."""
        await self._end([sign_in])

    async def end_by_id(self, sign_in_id: str) -> SignIn:
        """End the sign-in with this id. Raises `RequestError` (NOT_FOUND), or `StoreError` as `end`
        does; then it may be called again."""
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
        """Know no browser of an admin who was revoked (`Admins.revoke` has told the store)."""
        for known in [one for one in self._by_hash.values() if one.admin == name]:
            del self._by_hash[known.sha256]

    def _over(self, sign_in: SignIn) -> bool:
        """Whether it is good no more: its time is over, or its admin has another token or none."""
        return (
            self._clock() >= sign_in.expires_at
            or not self._admins.knows(sign_in.admin)
            or not hmac.compare_digest(self._admins.mark_of(sign_in.admin), sign_in.token_mark)
        )

    async def _end(self, ended: Iterable[SignIn]) -> None:
        """Refuse them from now on, and let the store forget them, with those that it should have
        forgotten before."""
        for one in ended:
            self._by_hash.pop(one.sha256, None)
            self._unwritten[one.id] = one
        unwritten = dict(self._unwritten)
        if not unwritten:
            return
        forget = "DELETE FROM sign_ins WHERE cookie_sha256 = $1"
        try:
            await self._store.write(*(Write(forget, (one.sha256,)) for one in unwritten.values()))
        except StoreError as error:
            raise until_restart("this is signed out", error) from error
        for sign_in_id in unwritten:
            self._unwritten.pop(sign_in_id, None)


def csrf_token(cookie: str) -> str:
    """What a page must send along with a change, beside the cookie itself."""
    return hmac.digest(cookie.encode(), b"wai dashboard csrf", "sha256").hex()


def check_csrf(cookie: str, sent: str) -> None:
    """Raises `AuthError` (FORBIDDEN) unless `sent` is the cookie's token."""
    if not hmac.compare_digest(csrf_token(cookie).encode(), sent.encode("utf-8", "replace")):
        raise AuthError("this change did not come from the dashboard's own page", Fault.FORBIDDEN)


def _hash(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).digest()
