"""API keys: create, list, change, revoke."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from wai_api.keys import ChangeKey, CreatedKey, CreateKey, KeyList, KeyView
from wai_api.limits import KeyLimits
from wai_protocol.errors import Fault, RequestError
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
    views: list[KeyView] = []
    for begin in range(0, len(keys), _VIEWS_AT_ONCE):
        views += [_view(key) for key in keys[begin : begin + _VIEWS_AT_ONCE]]
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
    """Other limits, from the next request on."""
    wanted: ChangeKey = call.body
    key = context.keys.get(call.path["key"])
    if key is None:
        raise RequestError(f"there is no API key {call.path['key'][:80]!r}", Fault.NOT_FOUND)
    changed = await context.keys.set_limits(key.id, wanted.limits.applied_to(key.limits))
    limits = msgspec.to_builtins(wanted.limits)
    await context.audit.record(call.actor, "key.change", key.id, name=key.name, **limits)
    return KeyView(**_fields(changed))


async def revoke_key(context: Context, call: Call) -> KeyView:
    """Refused from now on."""
    await context.keys.revoke(call.path["key"])
    key = await context.keys.find(call.path["key"])
    assert key is not None  # no key is ever deleted
    await context.audit.record(call.actor, "key.revoke", key.id, name=key.name)
    return KeyView(**_fields(key))


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
    Endpoint("PATCH", "/keys/{key}", change_key, "Change a key's limits", KeyView, ChangeKey),
    Endpoint("DELETE", "/keys/{key}", revoke_key, "Revoke a key", KeyView),
)
