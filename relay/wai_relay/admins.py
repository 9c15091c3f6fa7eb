"""Who may administer this relay: names, and the SHA-256 of their tokens.

The admin of this machine is called `local`; its token lies in the data folder (`identity`) and that
file decides: a new one replaces the old. Sign-in by cookie and throttling are the admin API's.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Final

from wai_protocol.errors import AuthError, Fault

from .storage import Store, Write

LOCAL_ADMIN: Final = "local"
MAX_TOKEN_BYTES: Final = 256  # what a stranger may make us hash


class Admins:
    """The admins that are not revoked. Make it with `load`; belongs to one event loop."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._by_name: dict[str, bytes] = {}

    @classmethod
    async def load(
        cls, store: Store, local_token: str, clock: Callable[[], float] = time.time
    ) -> Admins:
        """Everyone that the store knows, and `local` by the token of this machine."""
        admins = cls(store, clock)
        digest = hashlib.sha256(local_token.encode()).digest()
        await store.write(
            Write(
                "INSERT INTO admins (name, token_sha256, created_at) VALUES ($1, $2, $3)"
                " ON CONFLICT (name) DO UPDATE SET token_sha256 = excluded.token_sha256",
                (LOCAL_ADMIN, digest, clock()),
            )
        )
        for row in await store.read(
            "SELECT name, token_sha256 FROM admins WHERE revoked_at IS NULL"
        ):
            admins._by_name[row["name"]] = row["token_sha256"]
        return admins

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
