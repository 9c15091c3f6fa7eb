"""Captured requests: turn the capture of a key on and off, look at one request, send it again.

All of it is in the audit log, a look too: what people said to a model is theirs.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from wai_api.captures import (
    CapturedRequest,
    CaptureList,
    CaptureView,
    ReplayRequest,
    ReplayView,
    StartCapture,
)
from wai_api.keys import KeyView
from wai_protocol.errors import Fault, RequestError, WaiError
from wai_protocol.foreign_json import ForeignJsonError, decode_json
from wai_relay.access.naming import unknown
from wai_relay.observe.captures import Captured

from .context import Context
from .endpoint import Call, Endpoint, Query
from .keys import key_view

# A caller may have put a secret of this relay into its prompt.
_SECRET: Final = re.compile(r"wai_(sk|at|inv)_[\w-]{8,}")
_DECODER: Final = msgspec.json.Decoder()


async def list_captures(context: Context, call: Call) -> CaptureList:
    """The keys that are captured now."""
    states = context.captures.states()
    return CaptureList(
        tuple(
            CaptureView(
                key_id=one.key_id,
                key_name=context.keys.name_of(one.key_id),
                until=one.until,
                requests=one.requests,
                size_bytes=one.size_bytes,
            )
            for one in states
        )
    )


async def start_capture(context: Context, call: Call) -> KeyView:
    """From the next request on, for a limited time."""
    wanted: StartCapture = call.body
    key = context.keys.named(call.path["key"])
    # It is written down first: nothing is captured that the audit log does not tell of.
    await context.audit.record(call.actor, "key.capture", key.id, name=key.name, for_s=wanted.for_s)
    context.captures.begin(key.id, wanted.for_s)
    return key_view(context, key)


async def end_capture(context: Context, call: Call) -> KeyView:
    """Off, and what was captured is wiped, at every relay."""
    key = context.keys.named(call.path["key"])
    context.captures.end(key.id)
    await context.audit.record(call.actor, "key.capture_off", key.id, name=key.name)
    if not call.query.get("own", False):
        silent = await context.peers.tell_all(
            call.actor, "DELETE", f"/keys/{key.id}/capture", KeyView
        )
        if silent:
            raise WaiError(
                f"off and wiped, but not at {', '.join(silent)}, which did not answer: what was"
                " captured there is wiped by itself once its time is over",
                Fault.UPSTREAM_UNREACHABLE,
            )
    return key_view(context, key)


async def look_at_captured(context: Context, call: Call) -> CapturedRequest:
    """The prompt and the answer of one request."""
    captured = _find(context, call)
    record = captured.record
    await context.audit.record(
        call.actor,
        "request.look",
        record.request_id,
        key=captured.key_id,
        name=context.keys.name_of(captured.key_id),
    )
    return CapturedRequest(
        id=record.request_id,
        key_id=captured.key_id,
        path=record.path,
        model=record.model,
        node=record.node,
        status=record.status,
        prompt=_shown(captured.prompt),
        prompt_cut=captured.prompt_cut,
        answer=_shown(captured.answer),
        answer_cut=captured.answer_cut,
    )


async def replay(context: Context, call: Call) -> ReplayView:
    """Send it again; the answer is here once it is over."""
    wanted: ReplayRequest = call.body
    captured = _find(context, call)
    before = captured.record
    if before.method != "POST" or captured.prompt_cut or not captured.prompt_read:
        raise RequestError("its prompt was not captured to its end, so it can't be sent again")
    node = None if wanted.node is None else _node_called(context, wanted.node)
    body = bytes(captured.prompt)
    if wanted.model is not None:
        body = _with_model(body, wanted.model)
    await context.audit.record(
        call.actor,
        "request.replay",
        before.request_id,
        key=captured.key_id,
        node=node or "",
        model=wanted.model or before.model,
    )
    found = await context.replays.send(before.path, body, node=node)
    record = context.explanations.find(found.request_id)
    return ReplayView(
        id=found.request_id,
        model=record.served_model if record else "",
        node=record.node if record else "",
        status=found.status or (record.status if record else 0),
        fault=record.fault if record else "",
        answer=_shown(found.answer),
        answer_cut=found.cut,
        ttft_ms=record.ttft_ms if record else None,
        duration_ms=record.duration_ms if record else 0.0,
        prompt_tokens=record.tokens.prompt if record else 0,
        completion_tokens=record.tokens.completion if record else 0,
    )


def _node_called(context: Context, name_or_id: str) -> str:
    node = context.fleet.find(name_or_id)
    if node is None:
        raise unknown("node", name_or_id, [node.record.name for node in context.fleet.nodes()])
    return node.record.name


def _find(context: Context, call: Call) -> Captured:
    captured = context.captures.find(call.path["request"])
    if captured is None:
        raise RequestError(
            f"no request {call.path['request'][:80]!r} is captured: turn the capture of its key on"
            " before it comes, and look before its time is over",
            Fault.NOT_FOUND,
        )
    return captured


def _shown(data: bytes | bytearray) -> str:
    return _SECRET.sub(r"wai_\1_…", data.decode("utf-8", "replace"))


def _with_model(body: bytes, model: str) -> bytes:
    try:
        asked: Any = decode_json(_DECODER, body, "the prompt", limit_bytes=len(body))
    except ForeignJsonError as error:
        raise RequestError("its prompt is no JSON, so no other model can be named in it") from error
    if not isinstance(asked, dict):
        raise RequestError("its prompt is no JSON object, so no other model can be named in it")
    return msgspec.json.encode({**asked, "model": model})


ENDPOINTS: Final = (
    Endpoint("GET", "/captures", list_captures, "List the keys that are captured", CaptureList),
    Endpoint(
        *("POST", "/keys/{key}/capture", start_capture, "Capture a key's requests for a while"),
        answer=KeyView,
        body=StartCapture,
    ),
    Endpoint(
        *("DELETE", "/keys/{key}/capture", end_capture, "Capture a key no more, and wipe"),
        answer=KeyView,
        query=(Query("own", bool, "only at this relay, without telling others"),),
        for_relays=True,
    ),
    Endpoint(
        *("GET", "/requests/{request}/captured", look_at_captured),
        *("Look at a captured request's prompt and answer", CapturedRequest),
    ),
    Endpoint(
        *("POST", "/requests/{request}/replay", replay, "Send a captured request again"),
        answer=ReplayView,
        body=ReplayRequest,
    ),
)
