"""API keys: create, list, change, revoke. A key is named by its id or its name."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from wai_api.keys import ChangeKey, CreatedKey, CreateKey, KeyList, KeyView, RotateKey
from wai_api.limits import KeyLimits
from wai_protocol.errors import RequestError
from wai_relay.contracts.api_keys import ApiKey

from .context import Context
from .endpoint import Call, Endpoint, Query

_VIEWS_AT_ONCE: Final = 500  # a few milliseconds; streams go on in between


async def list_keys(context: Context, call: Call) -> KeyList:
    """The keys that are good; with `revoked=true` the others too."""
    keys = await context.keys.list(revoked=call.query.get("revoked", False))
    if (after := call.query.get("after")) is not None:
        place = next((i for i, key in enumerate(keys) if key.id == after), None)
        if place is None:
            raise RequestError(f"there is no API key {after[:80]!r} to go on after")
        keys = keys[place + 1 :]
    if (label := call.query.get("label")) is not None:
        keys = [key for key in keys if label in key.labels]
    keys = keys[: call.query.get("limit")]
    last_used = await context.usage.last_used()
    views: list[KeyView] = []
    for begin in range(0, len(keys), _VIEWS_AT_ONCE):
        views += [
            KeyView(**_fields(context, key), last_used_at=_last_used_at(key, last_used))
            for key in keys[begin : begin + _VIEWS_AT_ONCE]
        ]
        await asyncio.sleep(0)
    return KeyList(tuple(views))


def _last_used_at(key: ApiKey, last_used: Mapping[str, float]) -> float | None:
    """When `key` was used last, to the hour; not before there was such a key."""
    hour = last_used.get(key.id)
    return None if hour is None else max(hour, key.created_at)


async def create_key(context: Context, call: Call) -> CreatedKey:
    """A new key; its secret is in this answer and nowhere else."""
    wanted: CreateKey = call.body
    limits = wanted.limits.applied_to(KeyLimits())
    key, secret = await context.keys.create(wanted.name, limits, wanted.labels)
    given = msgspec.to_builtins(wanted.limits)
    if key.labels:
        given["labels"] = list(key.labels)
    await context.audit.record(call.actor, "key.create", key.id, name=key.name, **given)
    return CreatedKey(**_fields(context, key), key=secret)


async def rotate_key(context: Context, call: Call) -> CreatedKey:
    """Another secret for the same key: its limits and its usage go on."""
    key = context.keys.named(call.path["key"])
    key, secret = await context.keys.rotate(key.id, call.body.grace_s)
    detail = {"name": key.name, "grace_s": call.body.grace_s}
    await context.audit.record(call.actor, "key.rotate", key.id, **detail)
    return CreatedKey(**_fields(context, key), key=secret)


async def change_key(context: Context, call: Call) -> KeyView:
    """Another name or other limits, from the next request on."""
    wanted: ChangeKey = call.body
    key = context.keys.named(call.path["key"])
    if wanted.name is not None:
        renamed = await context.keys.rename(key.id, wanted.name)
        await context.audit.record(
            call.actor, "key.rename", key.id, name=renamed.name, before=key.name
        )
        key = renamed
    if wanted.limits is not None:
        limits = msgspec.to_builtins(wanted.limits)
        key = await context.keys.set_limits(key.id, wanted.limits.applied_to(key.limits))
        await context.audit.record(call.actor, "key.change", key.id, name=key.name, **limits)
    if wanted.labels is not None:
        key = await context.keys.set_labels(key.id, wanted.labels)
        labels = list(key.labels)
        await context.audit.record(call.actor, "key.label", key.id, name=key.name, labels=labels)
    return key_view(context, key)


async def revoke_key(context: Context, call: Call) -> KeyView:
    """Refused from now on."""
    meant = await context.keys.named_of_all(call.path["key"])
    context.captures.end(meant.id)
    await context.keys.revoke(meant.id)
    key = await context.keys.find(meant.id)
    assert key is not None  # no key is ever deleted
    await context.audit.record(call.actor, "key.revoke", key.id, name=key.name)
    return key_view(context, key)


def key_view(context: Context, key: ApiKey) -> KeyView:
    """A key as the API shows it."""
    return KeyView(**_fields(context, key))


def _fields(context: Context, key: ApiKey) -> dict[str, Any]:
    good = key.revoked_at is None
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "limits": key.limits,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
        "labels": key.labels,
        "former_until": context.keys.former_good_until(key.id) if good else None,
        "month_tokens": context.months.of(key.id, context.clock()),
        "capture_until": context.captures.until(key.id),
    }


ENDPOINTS: Final = (
    Endpoint(
        *("GET", "/keys", list_keys, "List the API keys", KeyList),
        query=(
            Query("revoked", bool, "also those that were revoked"),
            Query("limit", int, "at most so many (all)", 1, 10_000),
            Query("label", str, "only those with this label"),
            Query("after", str, "only those after the key with this id"),
        ),
    ),
    Endpoint(
        *("POST", "/keys", create_key, "Create an API key", CreatedKey, CreateKey), status=201
    ),
    Endpoint(
        "PATCH", "/keys/{key}", change_key, "Rename a key, change its limits", KeyView, ChangeKey
    ),
    Endpoint(
        *("POST", "/keys/{key}/rotate", rotate_key, "Give a key another secret", CreatedKey),
        RotateKey,
    ),
    Endpoint("DELETE", "/keys/{key}", revoke_key, "Revoke a key", KeyView),
)
