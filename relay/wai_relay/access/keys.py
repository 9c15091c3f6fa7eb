"""API keys of callers, and their limits.

All valid keys are in memory, indexed by the SHA-256 of their secret; the store has them and the
revoked ones. The limits are enforced by `policy.admission`. A key's secret is returned once, when
the key is created, and not stored.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from wai_api.bounds import MAX_KEY_NAME_CHARS
from wai_api.limits import KeyLimits, clamped
from wai_protocol.errors import AuthError, Fault, RequestError, StoreError
from wai_protocol.surface import Headers
from wai_protocol.websocket import MAX_PROTOCOLS_BYTES, PROTOCOL_FIELD
from wai_relay.contracts.api_keys import KEY_PROTOCOL, ApiKey
from wai_relay.storage import ConflictError, Row, Store, Write, undone_by_restart

from .naming import unknown

KEY_PREFIX: Final = "wai_sk_"
KEY_SECRET_BYTES: Final = 32  # 256 random bits: no need for a slow hash
SHOWN_CHARS: Final = len(KEY_PREFIX) + 4  # enough to recognise a key in a list, useless to guess it
MAX_PRESENTED_BYTES: Final = 256  # what a caller may make us hash
MAX_SHOWN_IDS: Final = 5  # of keys with one name, in an error


_NAMES: Final = "SELECT id, name FROM api_keys"


class KeyRing:
    """The keys that are not revoked. Make it with `load`. Belongs to one event loop."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._by_hash: dict[bytes, ApiKey] = {}
        self._by_id: dict[str, ApiKey] = {}
        self._unwritten: set[str] = set()
        """Ids that are revoked, but not yet in the store, so that a restart would undo it."""

    @classmethod
    async def load(cls, store: Store, clock: Callable[[], float] = time.time) -> KeyRing:
        """Load all keys that are not revoked. `clock`: returns seconds since 1970."""
        ring = cls(store, clock)
        for row in await store.read("SELECT * FROM api_keys WHERE revoked_at IS NULL"):
            ring._keep(_key_from_row(row))
        return ring

    def authenticate(self, headers: Headers) -> ApiKey:
        """Return the key of a request, from `Authorization: Bearer`, `x-api-key`, Azure's
        `api-key`, or a WebSocket's subprotocol.

        Raises `AuthError`: KEY_MISSING if there is none, KEY_INVALID if it is unknown, revoked or
        expired.
        """
        presented = False
        for name, value in headers:
            if name == b"authorization":
                scheme, _, secret = value.partition(b" ")
                if scheme.lower() != b"bearer":
                    continue
            elif name in (b"x-api-key", b"api-key"):
                secret = value
            elif name == PROTOCOL_FIELD:
                secret = _in_subprotocols(value)
                if not secret:
                    continue
            else:
                continue
            presented = True
            secret = secret.strip()
            if len(secret) > MAX_PRESENTED_BYTES:
                continue
            key = self._by_hash.get(hashlib.sha256(secret).digest())
            if key is not None and not self._expired(key):
                return key
        if presented:
            raise AuthError("this API key is not known, or was revoked", Fault.KEY_INVALID)
        raise AuthError(
            "no API key: send `Authorization: Bearer wai_sk_…` or `x-api-key: wai_sk_…`",
            Fault.KEY_MISSING,
        )

    def get(self, key_id: str) -> ApiKey | None:
        """The good key with this id."""
        return self._by_id.get(key_id)

    def named(self, name_or_id: str) -> ApiKey:
        """Return the good key that a person means.

        Raises `RequestError`: NOT_FOUND if there is none (it offers the nearest name), BAD_REQUEST
        if several keys have this name.
        """
        return _only_one(name_or_id, self._by_id)

    async def named_of_all(self, name_or_id: str) -> ApiKey:
        """Return the key that a person means, revoked or not; a good one before a revoked one.

        Raises `RequestError` as `named` does.
        """
        if name_or_id in self._by_id or any(k.name == name_or_id for k in self._by_id.values()):
            return self.named(name_or_id)
        return _only_one(name_or_id, {key.id: key for key in await self.list(revoked=True)})

    def name_of(self, key_id: str) -> str:
        """Return the name of the key with this id, "" if there is none."""
        key = self._by_id.get(key_id)
        return key.name if key is not None else ""

    async def create(self, name: str, limits: KeyLimits | None = None) -> tuple[ApiKey, str]:
        """A new key and its secret, shown this once. Raises `RequestError` on a bad name."""
        check_key_name(name)
        random = secrets.token_bytes(KEY_SECRET_BYTES)
        secret = KEY_PREFIX + base64.urlsafe_b64encode(random).rstrip(b"=").decode()
        key = ApiKey(
            id="key_" + secrets.token_hex(8),
            name=name,
            sha256=hashlib.sha256(secret.encode()).digest(),
            prefix=secret[:SHOWN_CHARS],
            limits=limits or KeyLimits(),
            version=1,
            created_at=self._clock(),
        )
        await self._store.write(
            Write(
                "INSERT INTO api_keys (id, name, sha256, prefix, limits, version, created_at)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7)",
                (
                    *(key.id, key.name, key.sha256, key.prefix),
                    *(_to_stored(key.limits), key.version, key.created_at),
                ),
            )
        )
        self._keep(key)
        return key, secret

    async def set_limits(self, key_id: str, limits: KeyLimits) -> ApiKey:
        """Change the limits of a key, from its next request on.

        Raises `RequestError`: NOT_FOUND if there is no such key or it was revoked meanwhile,
        BAD_REQUEST if it was changed meanwhile.
        """
        return await self._change(key_id, limits=limits)

    async def _change(self, key_id: str, **changes: Any) -> ApiKey:
        key = self._by_id.get(key_id)
        if key is None:
            raise _no_such_key(key_id)
        changed = replace(key, **changes, version=key.version + 1)
        try:
            await self._store.write(
                Write(
                    "UPDATE api_keys SET name = $1, limits = $2, version = $3"
                    " WHERE id = $4 AND version = $5 AND revoked_at IS NULL",
                    (
                        *(changed.name, _to_stored(changed.limits), changed.version),
                        *(key_id, key.version),
                    ),
                    rows=1,
                )
            )
        except ConflictError:
            if key_id in self._by_id:
                raise RequestError("the key was changed meanwhile; load it and try again") from None
            raise _no_such_key(key_id) from None
        # The key may have been revoked during the write; it must stay revoked.
        if self._by_id.get(key_id) is not key:
            raise _no_such_key(key_id)
        self._keep(changed)
        return changed

    async def rename(self, key_id: str, name: str) -> ApiKey:
        """Give a key another name. Raises `RequestError` as `set_limits` does, or on a bad name."""
        check_key_name(name)
        return await self._change(key_id, name=name)

    async def revoke(self, key_id: str) -> None:
        """Revoke a key at once: its next request fails even if the write to disk is not finished.

        Does nothing if it is revoked already. Raises `RequestError` (NOT_FOUND) for an unknown key,
        and `StoreError` if it could not be stored: then it holds until the relay restarts.
        """
        key = self._by_id.pop(key_id, None)
        if key is not None:
            del self._by_hash[key.sha256]
        try:
            await self._store.write(
                Write(
                    "UPDATE api_keys SET version = version + 1,"
                    " revoked_at = coalesce(revoked_at, $1) WHERE id = $2",
                    (self._clock(), key_id),
                    rows=1,
                )
            )
        except ConflictError:
            raise _no_such_key(key_id) from None
        except StoreError as error:
            if key is None and key_id not in self._unwritten:
                raise
            self._unwritten.add(key_id)
            raise undone_by_restart(f"the key {key_id} is refused", error) from error
        self._unwritten.discard(key_id)

    async def list(self, *, revoked: bool = False) -> list[ApiKey]:
        """Return the keys, oldest first. `revoked`: include those that are revoked."""
        if not revoked:  # from memory: to read 10,000 rows would block the event loop for a second
            return sorted(self._by_id.values(), key=lambda key: (key.created_at, key.id))
        rows = await self._store.read("SELECT * FROM api_keys ORDER BY created_at, id")
        return await asyncio.to_thread(lambda: [_key_from_row(row) for row in rows])

    async def find(self, key_id: str) -> ApiKey | None:
        """Return the key with this id, revoked or not; None if there is none."""
        rows = await self._store.read("SELECT * FROM api_keys WHERE id = $1", key_id)
        return _key_from_row(rows[0]) if rows else None

    async def names(self, ids: Sequence[str] | None = None) -> dict[str, str]:
        """Return the names of all keys, or of those with `ids`, by id. Includes revoked keys."""
        if ids is None:
            return {row["id"]: row["name"] for row in await self._store.read(_NAMES)}
        places = ", ".join(f"${n}" for n in range(1, len(ids) + 1))
        rows = await self._store.read(f"{_NAMES} WHERE id IN ({places})", *ids) if ids else []
        return {row["id"]: row["name"] for row in rows}

    def _keep(self, key: ApiKey) -> None:
        self._by_hash[key.sha256] = key
        self._by_id[key.id] = key

    def _expired(self, key: ApiKey) -> bool:
        return key.limits.expires_at is not None and self._clock() >= key.limits.expires_at


def check_key_name(name: str) -> None:
    """Raise `RequestError` for what can't be a key's name."""
    if not name.strip() or len(name) > MAX_KEY_NAME_CHARS or not name.isprintable():
        raise RequestError(f"a key's name has 1 to {MAX_KEY_NAME_CHARS} printable characters")


def _in_subprotocols(value: bytes) -> bytes:
    """The key that a web page gives with a WebSocket; b"" if there is none."""
    if len(value) > MAX_PROTOCOLS_BYTES:
        return b""
    for name in value.split(b","):
        if name.strip(b" \t").startswith(KEY_PROTOCOL):
            return name.strip(b" \t").removeprefix(KEY_PROTOCOL)
    return b""


def _only_one(name_or_id: str, keys: Mapping[str, ApiKey]) -> ApiKey:
    """The one of `keys` (by id) with this id, or else with this name."""
    if (key := keys.get(name_or_id)) is not None:
        return key
    found = [key for key in keys.values() if key.name == name_or_id]
    if len(found) == 1:
        return found[0]
    if not found:
        raise unknown("API key", name_or_id, {key.name for key in keys.values()})
    ids = ", ".join(key.id for key in found[:MAX_SHOWN_IDS])
    raise RequestError(f"{len(found)} API keys are called {name_or_id!r}; give an id: {ids}")


def _key_from_row(row: Row) -> ApiKey:
    return ApiKey(
        id=row["id"],
        name=row["name"],
        sha256=row["sha256"],
        prefix=row["prefix"],
        limits=_from_stored(row["id"], row["limits"]),
        version=row["version"],
        created_at=row["created_at"],
        revoked_at=row["revoked_at"],
    )


def _to_stored(limits: KeyLimits) -> str:
    """The limits as the store keeps them: by their names in Python, as the first version did."""
    return json.dumps(msgspec.structs.asdict(limits), separators=(",", ":"))


def _from_stored(key_id: str, text: str) -> KeyLimits:
    """The limits as the store has them, within today's ranges. Raises `StoreError`."""
    try:
        stored = msgspec.json.decode(text, type=dict[str, Any])
        return msgspec.convert(clamped(stored), KeyLimits)
    except msgspec.DecodeError as error:
        raise StoreError(f"the limits of the API key {key_id} are damaged: {error}") from error


def _no_such_key(key_id: str) -> RequestError:
    return RequestError(f"there is no API key {key_id!r}", Fault.NOT_FOUND)
