"""Who may administer this relay: names, and the SHA-256 of their tokens.

The admin of this machine is called `local`; its token lies in the data folder (`identity`) and that
file decides: a new one replaces the old. Sign-in by cookie and throttling are the admin API's.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wai_api.bounds import MAX_TOKEN_BYTES
from wai_api.patterns import ADMIN_NAME
from wai_protocol.errors import AuthError, Fault, RequestError, StoreError
from wai_relay.storage import ConflictError, Store, Write, until_restart

LOCAL_ADMIN: Final = "local"
_MARK: Final = b"wai sign-in by "


@dataclass(frozen=True, slots=True)
class AdminRecord:
    """An admin by name; `created_at` is seconds since 1970."""

    name: str
    created_at: float


class Admins:
    """The admins that are not revoked. Make it with `load`; belongs to one event loop."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._by_name: dict[str, bytes] = {}
        self._unwritten: set[str] = set()
        """Revoked, but not in the store: a restart would undo that."""

    @classmethod
    async def load(
        cls, store: Store, local_token: str, clock: Callable[[], float] = time.time
    ) -> Admins:
        """Everyone that the store knows, and `local` by the token of this machine."""
        admins = cls(store, clock)
        digest = hashlib.sha256(local_token.encode()).digest()
        for row in await store.read(
            "SELECT name, token_sha256 FROM admins WHERE revoked_at IS NULL"
        ):
            admins._by_name[row["name"]] = row["token_sha256"]
        if admins._by_name.get(LOCAL_ADMIN) != digest:  # a start without news needs no disk
            await store.write(
                Write(
                    "INSERT INTO admins (name, token_sha256, created_at) VALUES ($1, $2, $3)"
                    " ON CONFLICT (name) DO UPDATE SET token_sha256 = excluded.token_sha256",
                    (LOCAL_ADMIN, digest, clock()),
                )
            )
            admins._by_name[LOCAL_ADMIN] = digest
        return admins

    def knows(self, name: str) -> bool:
        """Whether there is an admin of this name who was not revoked."""
        return name in self._by_name

    def mark_of(self, name: str) -> bytes:
        """What tells this admin's token from one that replaces it; not of use as a token. There
        must be such an admin."""
        return hashlib.sha256(_MARK + self._by_name[name]).digest()

    def replace_local(self, token: str) -> None:
        """Let `local` in by `token` from now on: what was signed in by another one is over."""
        digest = hashlib.sha256(token.encode()).digest()
        if hmac.compare_digest(self._by_name[LOCAL_ADMIN], digest):
            return
        self._by_name[LOCAL_ADMIN] = digest
        # The file decides at the next start in any case.
        self._store.submit(
            Write("UPDATE admins SET token_sha256 = $1 WHERE name = $2", (digest, LOCAL_ADMIN))
        )

    async def list(self) -> list[AdminRecord]:
        """Those that are not revoked, oldest first."""
        rows = await self._store.read(
            "SELECT name, created_at FROM admins WHERE revoked_at IS NULL ORDER BY created_at, name"
        )
        return [AdminRecord(row["name"], row["created_at"]) for row in rows]

    async def create(self, name: str, token: str) -> AdminRecord:
        """Let someone in by `token` from now on; a revoked name may be given again.

        Raises `RequestError`: no good name, or taken.
        """
        if not re.fullmatch(ADMIN_NAME, name):
            raise RequestError("an admin's name has 1 to 64 letters, digits, dots, dashes, `@`")
        digest, now = hashlib.sha256(token.encode()).digest(), self._clock()
        try:
            await self._store.write(
                Write(
                    "INSERT INTO admins (name, token_sha256, created_at) VALUES ($1, $2, $3)"
                    " ON CONFLICT (name) DO UPDATE SET token_sha256 = excluded.token_sha256,"
                    " created_at = excluded.created_at, revoked_at = NULL"
                    " WHERE admins.revoked_at IS NOT NULL",
                    (name, digest, now),
                    rows=1,
                )
            )
        except ConflictError:
            raise RequestError(f"there is an admin {name} already", Fault.NAME_TAKEN) from None
        self._by_name[name] = digest
        return AdminRecord(name, now)

    async def revoke(self, name: str) -> None:
        """Let someone in no more: token and browsers, from now on.

        Raises `RequestError`, or `StoreError` if it could not be written: then they are out until a
        restart, and this may be called again.
        """
        if name == LOCAL_ADMIN:
            raise RequestError(
                "`local` is this machine's own admin: its token file decides", Fault.FORBIDDEN
            )
        if self._by_name.pop(name, None) is None and name not in self._unwritten:
            raise RequestError(f"there is no admin {name[:80]!r}", Fault.NOT_FOUND)
        self._unwritten.add(name)
        try:
            await self._store.write(
                Write("UPDATE admins SET revoked_at = $1 WHERE name = $2", (self._clock(), name)),
                # Together: who gets the name later must not inherit what was signed in before.
                Write("DELETE FROM sign_ins WHERE admin = $1", (name,)),
            )
        except StoreError as error:
            raise until_restart(f"the admin {name} is refused", error) from error
        self._unwritten.discard(name)

    def authenticate(self, token: bytes) -> str:
        """The name of the admin with this token. Raises `AuthError` (KEY_INVALID)."""
        digest = hashlib.sha256(token[:MAX_TOKEN_BYTES]).digest()
        found = None
        for name, expected in self._by_name.items():
            # Every one is compared, in constant time: the wait tells nothing.
            if hmac.compare_digest(digest, expected):
                found = name
        if found is None or len(token) > MAX_TOKEN_BYTES:
            raise AuthError("this admin token is not known, or was revoked", Fault.KEY_INVALID)
        return found
