"""API keys of callers, and their limits.

All valid keys are in memory, indexed by the SHA-256 of their secret; the store has them and the
revoked ones. The limits are enforced by `policy.admission`. A key's secret is returned once, when
the key is created, and not stored.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from wai_api.bounds import MAX_GRACE_S, MAX_KEY_NAME_CHARS
from wai_api.limits import KeyLimits
from wai_protocol.errors import AuthError, Fault, RequestError, StoreError
from wai_protocol.surface import Headers
from wai_protocol.websocket import PROTOCOL_FIELD, protocols_in
from wai_relay.contracts.api_keys import TRIAL_KEY_ID, ApiKey, KeyRefused, key_among
from wai_relay.storage import ConflictError, Store, Write, undone_by_restart

from .former_secrets import FormerSecrets
from .key_rows import inserted, key_of, read_labels, updated
from .naming import unknown
from .revoked_keys import MAX_REVOKED, RevokedKeys

KEY_PREFIX: Final = "wai_sk_"
KEY_SECRET_BYTES: Final = 32  # 256 random bits: no need for a slow hash
SHOWN_CHARS: Final = len(KEY_PREFIX) + 4  # enough to recognise a key in a list, useless to guess it
MAX_PRESENTED_BYTES: Final = 256  # what a caller may make us hash
MAX_SHOWN_IDS: Final = 5  # of keys with one name, in an error
MAX_LENT: Final = 8  # as many doctors and replays at once
TRIAL_NAME: Final = "an admin's trial"
_KEY_FIELDS: Final = frozenset({b"authorization", b"x-api-key", b"api-key", PROTOCOL_FIELD})


_CHANGED: Final = "the key was changed meanwhile; load it and try again"
_NAMES: Final = "SELECT id, name FROM api_keys"


class KeyRing:
    """The keys that are not revoked. Make it with `load`. Belongs to one event loop."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._by_hash: dict[bytes, ApiKey] = {}
        self._by_id: dict[str, ApiKey] = {}
        self._revoked = RevokedKeys()
        self._former = FormerSecrets()
        self._unwritten: set[str] = set()
        """Ids that are revoked, but not yet in the store, so that a restart would undo it."""
        self.on_limits: Callable[[ApiKey], None] = lambda key: None
        """Called with a key whose limits were changed, by whichever relay."""
        self._changing = asyncio.Lock()
        """Held while a change is written, and while others' changes are read: so what is read is
        never older than what this relay has written."""

    @classmethod
    async def load(cls, store: Store, clock: Callable[[], float] = time.time) -> KeyRing:
        """Load all keys that are not revoked. `clock`: returns seconds since 1970."""
        ring = cls(store, clock)
        await ring.follow()
        latest = "SELECT * FROM api_keys WHERE revoked_at IS NOT NULL ORDER BY revoked_at DESC"
        for row in reversed(await store.read(f"{latest} LIMIT $1", MAX_REVOKED)):
            ring._revoked.remember(key_of(row, {}))
        return ring

    async def follow(self, key_id: str | None = None) -> None:
        """Take over what the store has of one key, or of all: another relay has changed it.

        Raises `StoreError`; then nothing has changed.
        """
        async with self._changing:
            if key_id is None:
                await self._store_revocations()
            labels = await read_labels(self._store, key_id)
            if key_id is None:
                rows = await self._store.read("SELECT * FROM api_keys WHERE revoked_at IS NULL")
            else:
                rows = await self._store.read("SELECT * FROM api_keys WHERE id = $1", key_id)
            former = await FormerSecrets.load(self._store, self._clock())
            stored = {row["id"]: key_of(row, labels) for row in rows}
            gone = set(self._by_id) if key_id is None else {key_id}
            for known in [self._by_id[known] for known in gone if known in self._by_id]:
                found = stored.get(known.id)
                if found is None or found.revoked_at is not None:
                    self._forget(known)
            for key in stored.values():
                if key.revoked_at is None and key.id not in self._unwritten:
                    self._keep(key)
            self._former = former

    async def _store_revocations(self) -> None:
        """Store what could not be stored when it was asked for, if that works now."""
        with contextlib.suppress(StoreError):
            for key_id in list(self._unwritten):
                await self._store.write(self._revocation(key_id))
                self._unwritten.discard(key_id)

    def _forget(self, key: ApiKey) -> None:
        """Refuse a key from now on, and remember whose it was."""
        del self._by_id[key.id]
        self._by_hash.pop(key.sha256, None)
        self._revoked.remember(key)

    def authenticate(self, headers: Headers) -> ApiKey:
        """Return the key of a request, from `Authorization: Bearer`, `x-api-key`, Azure's
        `api-key`, or a WebSocket's subprotocol.

        Raises `AuthError`: KEY_MISSING if there is none, KEY_INVALID if it is unknown, revoked or
        expired.
        """
        presented: bytes | None = None
        for name, value in [field for field in headers if field[0] in _KEY_FIELDS]:
            if name == b"authorization":
                scheme, _, secret = value.partition(b" ")
                if scheme.lower() != b"bearer":
                    continue
            elif name == PROTOCOL_FIELD:
                secret = key_among(protocols_in([(name, value)]))
                if not secret:
                    continue
            else:
                secret = value
            presented = secret = secret.strip()
            if len(secret) > MAX_PRESENTED_BYTES:
                continue
            digest = hashlib.sha256(secret).digest()
            key = self._by_hash.get(digest) or self._by_former(digest)
            if key is not None and not self._expired(key):
                return key
        if presented is not None:
            raise KeyRefused(self._shown(presented))
        raise AuthError(
            "no API key: send `Authorization: Bearer wai_sk_…` or `x-api-key: wai_sk_…`",
            Fault.KEY_MISSING,
        )

    def get(self, key_id: str) -> ApiKey | None:
        """The good key with this id."""
        return self._by_id.get(key_id)

    def state_of(self, key_id: str) -> tuple[str, str] | None:
        """Return the name and the state (good, expired or revoked) of a key that is good or was
        revoked lately; None for any other id."""
        if (key := self._by_id.get(key_id)) is not None:
            return key.name, "expired" if self._expired(key) else "good"
        name = self._revoked.name_of(key_id)
        return None if name is None else (name, "revoked")

    def lend(self, seconds: float) -> str:
        """Return the secret of a key that is in memory only, for so long: `wai doctor` tries the
        way to a model with it, and requests are sent again with one. Raises `RequestError` if too
        many are lent."""
        now = self._clock()
        for key in self._lent():
            if self._expired(key):
                del self._by_hash[key.sha256]
        if len(lent := self._lent()) >= MAX_LENT:
            wait_s = max(1, round(min(key.limits.expires_at or now for key in lent) - now))
            raise RequestError(
                f"{MAX_LENT} trials (`wai doctor`, requests that are sent again) run at once; wait"
                f" until one of them is over, {wait_s} s at most",
                Fault.OVERLOADED,
                retry_after_s=wait_s,
            )
        key, secret = _new_key(TRIAL_NAME, KeyLimits(expires_at=now + seconds), now)
        self._by_hash[key.sha256] = replace(key, id=TRIAL_KEY_ID)
        return secret

    def take_back(self, secret: str) -> None:
        """Refuse a key that was lent from now on."""
        digest = hashlib.sha256(secret.encode()).digest()
        if (key := self._by_hash.get(digest)) is not None and key.id == TRIAL_KEY_ID:
            del self._by_hash[digest]

    def end_trial(self, trial: str) -> None:
        """Refuse the lent key with this `trial_id` from now on. Raises `RequestError`: there is
        none."""
        for key in self._lent():
            if _trial_id(key.sha256) == trial:
                del self._by_hash[key.sha256]
                return
        raise RequestError(f"there is no trial {trial[:80]!r}", Fault.NOT_FOUND)

    def _lent(self) -> list[ApiKey]:
        return [key for key in self._by_hash.values() if key.id == TRIAL_KEY_ID]

    def _shown(self, secret: bytes) -> str:
        """What is remembered of a refused key: see `RequestRecord.refused_key`."""
        if not secret.startswith(KEY_PREFIX.encode()) or len(secret) > MAX_PRESENTED_BYTES:
            return ""
        digest = hashlib.sha256(secret).digest()
        if (key := self._by_hash.get(digest)) is not None:
            return key.id
        shown = secret[:SHOWN_CHARS].decode("ascii", "replace")
        known = self._revoked.id_of(digest) or self._former.key_id_of(digest)
        return known or (shown if shown.isprintable() else "")

    def _by_former(self, digest: bytes) -> ApiKey | None:
        """The key that a former secret opens."""
        return self._by_id.get(self._former.good(digest, self._clock()))

    def former_good_until(self, key_id: str) -> float | None:
        """Until when a former secret of a key is good; None if it has none."""
        return self._former.good_until(key_id, self._clock())

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
        if key is None and key_id == TRIAL_KEY_ID:
            return TRIAL_NAME
        return key.name if key is not None else ""

    async def create(
        self, name: str, limits: KeyLimits | None = None, labels: Iterable[str] = ()
    ) -> tuple[ApiKey, str]:
        """A new key and its secret, shown this once. Raises `RequestError` on a bad name."""
        check_key_name(name)
        made, secret = _new_key(name, limits or KeyLimits(), self._clock())
        key = replace(made, labels=_ordered(labels))
        async with self._changing:
            await self._store.write(*inserted(key))
            self._keep(key)
        return key, secret

    async def rotate(self, key_id: str, grace_s: float) -> tuple[ApiKey, str]:
        """Give a key another secret, shown this once; the former one is good for `grace_s` more.

        With no grace no former secret is good any more. Raises `RequestError` as `set_limits` does.
        """
        key = self._by_id.get(key_id)
        if key is None:
            raise _no_such_key(key_id)
        now = self._clock()
        fresh, secret = _new_key(key.name, key.limits, now)
        until = now + min(max(grace_s, 0.0), MAX_GRACE_S)
        also = self._former.end(key_id, now) if until == now else []
        also += self._former.writes(key, until, now)
        changed = await self._change(key_id, also, sha256=fresh.sha256, prefix=fresh.prefix)
        self._former.keep(key, until, now)
        return changed, secret

    async def set_limits(self, key_id: str, limits: KeyLimits) -> ApiKey:
        """Change the limits of a key, from its next request on.

        Raises `RequestError`: NOT_FOUND if there is no such key or it was revoked meanwhile,
        BAD_REQUEST if it was changed meanwhile.
        """
        return await self._change(key_id, limits=limits)

    async def set_labels(self, key_id: str, labels: Iterable[str]) -> ApiKey:
        """Give a key these labels in place of those that it has. Raises as `set_limits` does."""
        return await self._change(key_id, labels=_ordered(labels))

    async def _change(self, key_id: str, also: Sequence[Write] = (), **changes: Any) -> ApiKey:
        """Change a key; `also`: writes that belong to it."""
        key = self._by_id.get(key_id)
        if key is None:
            raise _no_such_key(key_id)
        changed = replace(key, **changes, version=key.version + 1)
        async with self._changing:
            try:
                await self._store.write(*updated(key, changed), *also)
            except ConflictError:
                if key_id in self._by_id:
                    raise RequestError(_CHANGED) from None
                raise _no_such_key(key_id) from None
            # The key may have been revoked during the write; it must stay revoked.
            if key_id not in self._by_id:
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
        key = self._by_id.get(key_id)
        if key is not None:
            self._forget(key)
            self._unwritten.add(key_id)
        try:
            async with self._changing:
                await self._store.write(self._revocation(key_id))
        except ConflictError:
            self._unwritten.discard(key_id)
            raise _no_such_key(key_id) from None
        except StoreError as error:
            if key_id not in self._unwritten:
                raise
            raise undone_by_restart(f"the key {key_id} is refused", error, self._store) from error
        self._unwritten.discard(key_id)

    def _revocation(self, key_id: str) -> Write:
        return Write(
            "UPDATE api_keys SET version = version + 1,"
            " revoked_at = coalesce(revoked_at, $1) WHERE id = $2",
            (self._clock(), key_id),
            rows=1,
        )

    async def list(self, *, revoked: bool = False) -> list[ApiKey]:
        """Return the keys, oldest first. `revoked`: include those that are revoked."""
        if not revoked:  # from memory: to read 10,000 rows would block the event loop for a second
            return sorted(self._by_id.values(), key=lambda key: (key.created_at, key.id))
        rows = await self._store.read("SELECT * FROM api_keys ORDER BY created_at, id")
        labels = await read_labels(self._store)
        return await asyncio.to_thread(lambda: [key_of(row, labels) for row in rows])

    async def find(self, key_id: str) -> ApiKey | None:
        """Return the key with this id, revoked or not; None if there is none."""
        rows = await self._store.read("SELECT * FROM api_keys WHERE id = $1", key_id)
        return key_of(rows[0], await read_labels(self._store, key_id)) if rows else None

    def labels(self) -> set[str]:
        """All labels that good keys have."""
        return {label for key in self._by_id.values() for label in key.labels}

    async def names(self, ids: Sequence[str] | None = None) -> dict[str, str]:
        """Return the names of all keys, or of those with `ids`, by id. Includes revoked keys."""
        if ids is None:
            return {row["id"]: row["name"] for row in await self._store.read(_NAMES)}
        places = ", ".join(f"${n}" for n in range(1, len(ids) + 1))
        rows = await self._store.read(f"{_NAMES} WHERE id IN ({places})", *ids) if ids else []
        return {row["id"]: row["name"] for row in rows}

    def _keep(self, key: ApiKey) -> None:
        known = self._by_id.get(key.id)
        if known is not None and known.sha256 != key.sha256:
            self._by_hash.pop(known.sha256, None)  # it has another secret now
        self._by_hash[key.sha256] = key
        self._by_id[key.id] = key
        if known is not None and known.limits != key.limits:
            self.on_limits(key)

    def _expired(self, key: ApiKey) -> bool:
        return key.limits.expires_at is not None and self._clock() >= key.limits.expires_at


def trial_id(secret: str) -> str:
    """What names a lent key, and is no secret."""
    return _trial_id(hashlib.sha256(secret.encode()).digest())


def _trial_id(digest: bytes) -> str:
    return f"trial_{digest[:8].hex()}"


def _new_key(name: str, limits: KeyLimits, now: float) -> tuple[ApiKey, str]:
    """A key that nobody knows yet, and its secret."""
    random = secrets.token_bytes(KEY_SECRET_BYTES)
    secret = KEY_PREFIX + base64.urlsafe_b64encode(random).rstrip(b"=").decode()
    key = ApiKey(
        id="key_" + secrets.token_hex(8),
        name=name,
        sha256=hashlib.sha256(secret.encode()).digest(),
        prefix=secret[:SHOWN_CHARS],
        limits=limits,
        version=1,
        created_at=now,
    )
    return key, secret


def _ordered(labels: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(labels)))


def check_key_name(name: str) -> None:
    """Raise `RequestError` for what can't be a key's name."""
    if not name.strip() or len(name) > MAX_KEY_NAME_CHARS or not name.isprintable():
        raise RequestError(f"a key's name has 1 to {MAX_KEY_NAME_CHARS} printable characters")


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


def _no_such_key(key_id: str) -> RequestError:
    return RequestError(f"there is no API key {key_id!r}", Fault.NOT_FOUND)
