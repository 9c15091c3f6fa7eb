"""Requests: those that run now, ending one, and why one went where it went."""

from __future__ import annotations

import time
from typing import Final

from wai_api.requests import Explanation, LiveView, RequestList
from wai_protocol.errors import Fault, RequestError
from wai_relay.observe.explain import explain, explain_stored
from wai_relay.observe.live import live_view

from .context import Context
from .endpoint import Call, Endpoint


async def list_requests(context: Context, call: Call) -> RequestList:
    """What runs at this moment."""
    views = context.live.views(time.monotonic())
    keys = (context.keys.get(key_id) for key_id in {view.key_id for view in views})
    return RequestList(views, {key.id: key.name for key in keys if key is not None})


async def cancel_request(context: Context, call: Call) -> LiveView:
    """Its caller is told; its slot is free at once."""
    live = context.live.find(call.path["request"])
    if live is None:
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
        return explain(live.record, running=True, captured=captured)
    record = context.explanations.find(request_id)
    if record is not None:
        return explain(record, captured=captured)
    stored = await context.history.find(request_id)
    if stored is None:
        raise _unknown(request_id, "is kept: it is too old, or its key was not valid")
    return explain_stored(stored)


def _unknown(request_id: str, what: str) -> RequestError:
    return RequestError(f"no request {request_id[:80]!r} {what}", Fault.NOT_FOUND)


ENDPOINTS: Final = (
    Endpoint("GET", "/requests", list_requests, "List the requests that run now", RequestList),
    Endpoint("DELETE", "/requests/{request}", cancel_request, "End a running request", LiveView),
    Endpoint(
        *("GET", "/requests/{request}/explain", explain_request),
        *("Say why a request went where it went", Explanation),
    ),
)
