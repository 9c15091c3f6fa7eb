"""What an admin can change while the relay runs. What needs a restart is in `config`."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec.structs import asdict, fields, replace

from wai_api.bounds import MAX_TTL_S
from wai_protocol.errors import RequestError

from .fleet.invites import DEFAULT_TTL_S
from .storage import Store, Write

DEFAULT_RETENTION_DAYS: Final = 30.0
MAX_RETENTION_DAYS: Final = 3660.0  # ten years, as the law may ask of some
_URL: Final = re.compile(r"https?://\S+")


class RelaySettings(msgspec.Struct, frozen=True):
    """`invite_ttl_s`: how long an invite is good for, unless its maker says otherwise.
    `public_url`: what invites name as this relay's address; None: what its configuration says.
    `usage_retention_days`: how long what each request cost is kept; its sums stay longer."""

    invite_ttl_s: float = DEFAULT_TTL_S
    public_url: str | None = None
    usage_retention_days: float = DEFAULT_RETENTION_DAYS

    def __post_init__(self) -> None:
        if not 0 < self.invite_ttl_s <= MAX_TTL_S:
            raise RequestError(f"invite_ttl_s is over 0 and at most {MAX_TTL_S:.0f}")
        if self.public_url is not None and not _URL.fullmatch(self.public_url):
            raise RequestError("public_url begins with https://, and has no spaces")
        if not 0 < self.usage_retention_days <= MAX_RETENTION_DAYS:
            raise RequestError(
                f"usage_retention_days is over 0 and at most {MAX_RETENTION_DAYS:.0f}"
            )


class SettingsBook:
    """The settings now, and in the store. Make it with `load`."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self.now = RelaySettings()
        self._changing = asyncio.Lock()
        """Held while a change is written, and while others' changes are read."""

    @classmethod
    async def load(cls, store: Store, clock: Callable[[], float] = time.time) -> SettingsBook:
        """What was set; the default for what was not."""
        book = cls(store, clock)
        await book.follow()
        return book

    async def follow(self) -> None:
        """Take over what the store has: another relay has changed it. Raises `StoreError`."""
        known = {field.name for field in fields(RelaySettings)}
        async with self._changing:
            rows = await self._store.read("SELECT name, value FROM settings")
            kept = {row["name"]: json.loads(row["value"]) for row in rows if row["name"] in known}
            self.now = RelaySettings(**kept)

    async def change(self, **changes: Any) -> RelaySettings:
        """Set some of them. Raises `RequestError`, and changes nothing, if one makes no sense."""
        changed = replace(self.now, **changes)
        values = asdict(changed)
        async with self._changing:
            await self._store.write(
                *(
                    Write(
                        "INSERT INTO settings (name, value, changed_at) VALUES ($1, $2, $3)"
                        " ON CONFLICT (name) DO UPDATE SET"
                        " value = excluded.value, changed_at = excluded.changed_at",
                        (name, json.dumps(values[name]), self._clock()),
                    )
                    for name in changes
                )
            )
            self.now = replace(self.now, **changes)
        return self.now
