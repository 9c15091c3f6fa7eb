"""The admins of a relay: their names, and the SHA-256 of their tokens.

The admin of this machine is called `local`. Its token is in a file of the data folder (`identity`);
a new token in that file replaces the old one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
import time
from collections.abc import Callable
from typing import Final

import msgspec

from wai_api.bounds import MAX_TOKEN_BYTES
from wai_api.patterns import ADMIN_NAME
from wai_protocol.errors import AuthError, Fault, RequestError, StoreError
from wai_relay.storage import ConflictError, Store, Write, undone_by_restart

LOCAL_ADMIN: Final = "local"
_MARK: Final = b"wai sign-in by "


def local_admin_of(relay_id: str) -> str:
    """The name of the admin of one machine where several relays share a store: each has a token of
    its own, by which its owner may sign in at the others too."""
    return f"{LOCAL_ADMIN}@{relay_id}"


class AdminRecord(msgspec.Struct, frozen=True):
    """An admin by name; `created_at` is seconds since 1970."""

    name: str
    created_at: float


class Admins:
    """The admins that are not revoked. Make it with `load`. Belongs to one event loop."""

    def __init__(self, store: Store, clock: Callable[[], float], local: str = LOCAL_ADMIN) -> None:
        self._store = store
        self._clock = clock
        self.local = local
        """The admin of this machine, whose token is in the relay's data folder."""
        self._by_name: dict[str, bytes] = {}
        self._unwritten: set[str] = set()
        """Names that are revoked, but not yet in the store, so that a restart would undo it."""
        self._changing = asyncio.Lock()
        """Held while a change is written, and while others' changes are read."""

    @classmethod
    async def load(
        cls,
        store: Store,
        local_token: str,
        clock: Callable[[], float] = time.time,
        *,
        local: str = LOCAL_ADMIN,
    ) -> Admins:
        """Load the admins from the store, and set the token of `local`, this machine's.

        Relays that share a store have a name of their own for it: see `local_admin_of`. `clock`:
        returns seconds since 1970. Raises `StoreError`.
        """
        admins = cls(store, clock, local)
        digest = hashlib.sha256(local_token.encode()).digest()
        await admins.follow()
        if admins._by_name.get(local) != digest:  # unchanged: start without a write to disk
            await store.write(
                Write(
                    "INSERT INTO admins (name, token_sha256, created_at) VALUES ($1, $2, $3)"
                    " ON CONFLICT (name) DO UPDATE SET token_sha256 = excluded.token_sha256,"
                    " revoked_at = NULL",
                    (local, digest, clock()),
                )
            )
            admins._by_name[local] = digest
        return admins

    async def follow(self) -> None:
        """Take over what the store has: another relay has changed it. Raises `StoreError`."""
        query = "SELECT name, token_sha256 FROM admins WHERE revoked_at IS NULL"
        async with self._changing:
            with contextlib.suppress(StoreError):  # what could not be stored before
                for name in list(self._unwritten):
                    await self._store.write(*self._revocation(name))
                    self._unwritten.discard(name)
            rows = await self._store.read(query)
            found = {row["name"]: row["token_sha256"] for row in rows}
            if (mine := self._by_name.get(self.local)) is not None:
                found[self.local] = mine  # this machine's file says it, not the store
            for name in self._unwritten:
                found.pop(name, None)
            self._by_name = found

    def knows(self, name: str) -> bool:
        """Return whether there is an admin of this name who is not revoked."""
        return name in self._by_name

    def mark_of(self, name: str) -> bytes:
        """Return a hash that identifies the admin's current token, but cannot be used as a token.

        The admin must exist.
        """
        return hashlib.sha256(_MARK + self._by_name[name]).digest()

    def replace_local(self, token: str) -> None:
        """Replace the token of `local`, which ends the sign-ins made with the old one."""
        digest = hashlib.sha256(token.encode()).digest()
        if hmac.compare_digest(self._by_name[self.local], digest):
            return
        self._by_name[self.local] = digest
        # Not awaited: the next start reads the token from its file in any case.
        self._store.submit(
            Write("UPDATE admins SET token_sha256 = $1 WHERE name = $2", (digest, self.local))
        )

    async def list(self) -> list[AdminRecord]:
        """Return the admins that are not revoked, oldest first. Raises `StoreError`."""
        rows = await self._store.read(
            "SELECT name, created_at FROM admins WHERE revoked_at IS NULL ORDER BY created_at, name"
        )
        return [AdminRecord(row["name"], row["created_at"]) for row in rows]

    async def create(self, name: str, token: str) -> AdminRecord:
        """Add an admin with `token`. The name of a revoked admin may be used again.

        Raises `RequestError` for an invalid name, or one that is in use (NAME_TAKEN).
        """
        if not re.fullmatch(ADMIN_NAME, name):
            raise RequestError("an admin's name has 1 to 64 letters, digits, dots, dashes, `@`")
        digest, now = hashlib.sha256(token.encode()).digest(), self._clock()
        async with self._changing:
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
        """Revoke an admin's token and sign-ins at once.

        Raises `RequestError` for an unknown admin and for `local`. Raises `StoreError` if it could
        not be stored: then it holds until a restart, and this may be called again.
        """
        if name == self.local:
            raise RequestError(
                f"`{name}` is the admin of this machine and is not revoked; replace its token file",
                Fault.FORBIDDEN,
            )
        if self._by_name.pop(name, None) is None and name not in self._unwritten:
            raise RequestError(f"there is no admin {name[:80]!r}", Fault.NOT_FOUND)
        self._unwritten.add(name)
        try:
            async with self._changing:
                await self._store.write(*self._revocation(name))
        except StoreError as error:
            raise undone_by_restart(f"the admin {name} is refused", error, self._store) from error
        self._unwritten.discard(name)

    def _revocation(self, name: str) -> tuple[Write, Write]:
        return (
            Write("UPDATE admins SET revoked_at = $1 WHERE name = $2", (self._clock(), name)),
            # In one transaction: a later admin of this name must not get the sign-ins.
            Write("DELETE FROM sign_ins WHERE admin = $1", (name,)),
        )

    def authenticate(self, token: bytes) -> str:
        """Return the name of the admin with this token. Raises `AuthError` (KEY_INVALID)."""
        digest = hashlib.sha256(token[:MAX_TOKEN_BYTES]).digest()
        found = None
        for name, expected in self._by_name.items():
            # All are compared, each in constant time, so that the duration reveals nothing.
            if hmac.compare_digest(digest, expected):
                found = name
        if found is None or len(token) > MAX_TOKEN_BYTES:
            raise AuthError("this admin token is not known, or was revoked", Fault.KEY_INVALID)
        return found
