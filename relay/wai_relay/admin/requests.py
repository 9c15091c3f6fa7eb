"""Requests: those that run now, ending one, and why one went where it went."""

from __future__ import annotations

import time
from typing import Final, TypeVar
from urllib.parse import quote

from msgspec.structs import replace

from wai_api.requests import Explanation, LiveView, RequestList
from wai_protocol.errors import Fault, RequestError
from wai_relay.observe.explain import explain, explain_stored
from wai_relay.observe.live import live_view

from .context import Context
from .endpoint import Call, Endpoint, Query
from .finished import named

_Found = TypeVar("_Found")
_OWN: Final = (Query("own", bool, "only what this relay knows itself, without asking others"),)


async def list_requests(context: Context, call: Call) -> RequestList:
    """What runs at this moment, at whichever relay."""
    views = own_views(context)
    if not call.query.get("own", False):
        for told in await context.peers.ask_all(call.actor, "/requests", RequestList):
            views += told.data
        views.sort(key=lambda view: view.started_at)
    keys = (context.keys.get(key_id) for key_id in {view.key_id for view in views})
    return RequestList(views, {key.id: key.name for key in keys if key is not None})


async def cancel_request(context: Context, call: Call) -> LiveView:
    """Its caller is told; its slot is free at once."""
    live = context.live.find(call.path["request"])
    if live is None:
        elsewhere = await _elsewhere(context, call, "DELETE", "", LiveView)
        if elsewhere is not None:
            return elsewhere
        raise _unknown(call.path["request"], "runs now")
    before = live_view(live, time.monotonic())
    live.end()
    await context.audit.record(call.actor, "request.cancel", before.id, key=before.key_id)
    return before


async def explain_request(context: Context, call: Call) -> Explanation:
    """The nodes that were weighed, their scores, and how it went."""
    request_id = call.path["request"]
    captured = context.captures.find(request_id) is not None
    live = context.live.find(request_id)
    if live is not None:
        found = explain(live.record, running=True, captured=captured)
        return replace(found, relay=context.relays.own_name)
    record = context.explanations.find(request_id)
    if record is not None:
        return replace(explain(record, captured=captured), relay=context.relays.own_name)
    elsewhere = await _elsewhere(context, call, "GET", "/explain", Explanation)
    if elsewhere is not None:
        return elsewhere
    if call.query.get("own", False):
        raise _unknown(request_id, "is known here")
    stored = await context.history.find(request_id)
    if stored is None:
        raise _unknown(request_id, "is kept: it is too old, or its key was not valid")
    return explain_stored(named(context, stored))


def own_views(context: Context) -> list[LiveView]:
    """What runs at this relay, which is named where there are others."""
    views, relay = context.live.views(time.monotonic()), context.relays.own_name
    return [replace(view, relay=relay) for view in views] if relay else views


async def _elsewhere(
    context: Context, call: Call, method: str, what: str, kind: type[_Found]
) -> _Found | None:
    """Ask the other relays for a request that this one does not know."""
    if call.query.get("own", False):
        return None
    path = f"/requests/{quote(call.path['request'], safe='')}{what}"
    return await context.peers.ask_for(call.actor, method, path, kind)


def _unknown(request_id: str, what: str) -> RequestError:
    return RequestError(f"no request {request_id[:80]!r} {what}", Fault.NOT_FOUND)


ENDPOINTS: Final = (
    Endpoint(
        *("GET", "/requests", list_requests, "List the requests that run now", RequestList),
        query=_OWN,
        for_relays=True,
    ),
    Endpoint(
        *("DELETE", "/requests/{request}", cancel_request, "End a running request", LiveView),
        query=_OWN,
        for_relays=True,
    ),
    Endpoint(
        *("GET", "/requests/{request}/explain", explain_request),
        *("Say why a request went where it went", Explanation),
        query=_OWN,
        for_relays=True,
    ),
)
