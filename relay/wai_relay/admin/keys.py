"""API keys: create, list, change, revoke. A key is named by its id or its name."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from wai_api.keys import ChangeKey, CreatedKey, CreateKey, KeyList, KeyView
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
    keys = keys[: call.query.get("limit")]
    last_used = await context.usage.last_used()
    views: list[KeyView] = []
    for begin in range(0, len(keys), _VIEWS_AT_ONCE):
        views += [
            KeyView(**_fields(key), last_used_at=last_used.get(key.id))
            for key in keys[begin : begin + _VIEWS_AT_ONCE]
        ]
        await asyncio.sleep(0)
    return KeyList(tuple(views))


async def create_key(context: Context, call: Call) -> CreatedKey:
    """A new key; its secret is in this answer and nowhere else."""
    wanted: CreateKey = call.body
    key, secret = await context.keys.create(wanted.name, wanted.limits.applied_to(KeyLimits()))
    limits = msgspec.to_builtins(wanted.limits)
    await context.audit.record(call.actor, "key.create", key.id, name=key.name, **limits)
    return CreatedKey(**_fields(key), key=secret)


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
    return _view(key)


async def revoke_key(context: Context, call: Call) -> KeyView:
    """Refused from now on."""
    meant = await context.keys.named_of_all(call.path["key"])
    await context.keys.revoke(meant.id)
    key = await context.keys.find(meant.id)
    assert key is not None  # no key is ever deleted
    await context.audit.record(call.actor, "key.revoke", key.id, name=key.name)
    return _view(key)


def _view(key: ApiKey) -> KeyView:
    return KeyView(**_fields(key))


def _fields(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "limits": key.limits,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }


ENDPOINTS: Final = (
    Endpoint(
        *("GET", "/keys", list_keys, "List the API keys", KeyList),
        query=(
            Query("revoked", bool, "also those that were revoked"),
            Query("limit", int, "at most so many (all)", 1, 10_000),
            Query("after", str, "only those after the key with this id"),
        ),
    ),
    Endpoint(
        *("POST", "/keys", create_key, "Create an API key", CreatedKey, CreateKey), status=201
    ),
    Endpoint(
        "PATCH", "/keys/{key}", change_key, "Rename a key, change its limits", KeyView, ChangeKey
    ),
    Endpoint("DELETE", "/keys/{key}", revoke_key, "Revoke a key", KeyView),
)
