"""The audit log: which admin changed what, and when. It holds no secrets and is append-only."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from wai_relay.storage import Store, Write

MAX_LISTED: Final = 1000  # entries in one answer


class AuditEntry(msgspec.Struct, frozen=True):
    """`actor` did `action` ("key.revoke") to `subject` (an id) `at` seconds since 1970."""

    id: int
    at: float
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]


class AuditLog:
    """The audit log in the store."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self.changes = 0
        """Number of entries made by this process; a change means that shown state may be old."""

    async def record(self, actor: str, action: str, subject: str, **detail: Any) -> None:
        """Add an entry. `detail`: values that JSON can represent. Raises `StoreError`."""
        await self._store.write(
            Write(
                "INSERT INTO audit_log (at, actor, action, subject, detail)"
                " VALUES ($1, $2, $3, $4, $5)",
                (self._clock(), actor, action, subject, json.dumps(detail)),
            )
        )
        self.changes += 1

    async def list(self, *, limit: int = 100, before: int | None = None) -> list[AuditEntry]:
        """Return the newest entries first. `before`: only entries with a lower id, for paging."""
        rows = await self._store.read(
            "SELECT * FROM audit_log WHERE id < $1 ORDER BY id DESC LIMIT $2",
            before if before is not None else 2**62,
            min(limit, MAX_LISTED),
        )
        return [AuditEntry(**{**row, "detail": json.loads(row["detail"])}) for row in rows]
