"""API keys as rows of the store, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from wai_api.limits import KeyLimits, clamped
from wai_protocol.errors import StoreError
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.storage import Row, Store, Write

_LABELS: Final = "SELECT key_id, label FROM api_key_labels"

Labels = Mapping[str, tuple[str, ...]]


def inserted(key: ApiKey) -> list[Write]:
    """The writes that store a new key."""
    row = Write(
        "INSERT INTO api_keys (id, name, sha256, prefix, limits, version, created_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7)",
        (
            *(key.id, key.name, key.sha256, key.prefix),
            *(_to_stored(key.limits), key.version, key.created_at),
        ),
    )
    return [row, *_labelled(key)]


def updated(before: ApiKey, key: ApiKey) -> list[Write]:
    """The writes that store a change; they conflict if it was changed or revoked meanwhile."""
    row = Write(
        "UPDATE api_keys SET name = $1, limits = $2, sha256 = $3, prefix = $4, version = $5"
        " WHERE id = $6 AND version = $7 AND revoked_at IS NULL",
        (
            *(key.name, _to_stored(key.limits), key.sha256, key.prefix, key.version),
            *(key.id, before.version),
        ),
        rows=1,
    )
    if key.labels == before.labels:
        return [row]
    return [row, Write("DELETE FROM api_key_labels WHERE key_id = $1", (key.id,)), *_labelled(key)]


async def read_labels(store: Store, key_id: str | None = None) -> Labels:
    """The labels of all keys, or of one, by the keys' ids. Raises `StoreError`."""
    if key_id is None:
        rows = await store.read(f"{_LABELS} ORDER BY label")
    else:
        rows = await store.read(f"{_LABELS} WHERE key_id = $1 ORDER BY label", key_id)
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["key_id"], []).append(row["label"])
    return {key: tuple(labels) for key, labels in found.items()}


def key_of(row: Row, labels: Labels) -> ApiKey:
    """The key of a row. Raises `StoreError` if it is damaged."""
    return ApiKey(
        id=row["id"],
        name=row["name"],
        sha256=row["sha256"],
        prefix=row["prefix"],
        limits=_from_stored(row["id"], row["limits"]),
        version=row["version"],
        created_at=row["created_at"],
        revoked_at=row["revoked_at"],
        labels=labels.get(row["id"], ()),
    )


def _labelled(key: ApiKey) -> Iterable[Write]:
    for label in key.labels:
        yield Write("INSERT INTO api_key_labels (key_id, label) VALUES ($1, $2)", (key.id, label))


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
