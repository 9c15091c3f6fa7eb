"""Requests that are over: a page of them, filtered, as JSON or CSV."""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import asdict, fields, replace
from starlette.responses import Response

from wai_api.requests import FinishedList, FinishedRequest
from wai_protocol.errors import RequestError
from wai_relay.usage import HistoryFilter
from wai_relay.usage.csv_text import csv_text
from wai_relay.usage.history import MAX_PAGE

from .context import Context
from .endpoint import NO_STORE, Call, Endpoint, Query
from .usage import only_asked_for

_FILTERS: Final = tuple(field.name for field in fields(HistoryFilter))
DEFAULT_PAGE: Final = 50
MAX_SLOW_MS: Final = 86_400_000  # a day


async def list_finished(context: Context, call: Call) -> FinishedList | Response:
    """The latest first; as CSV with `format=csv`."""
    asked: dict[str, Any] = call.query
    if "until" in asked and asked.get("since", 0) >= asked["until"]:
        raise RequestError("since must be before until")
    known = asked | await only_asked_for(context, asked)
    wanted = HistoryFilter(**{name: known.get(name) for name in _FILTERS})
    limit = asked.get("limit", DEFAULT_PAGE)
    found = await context.history.page(wanted, limit + 1, before=asked.get("before"))
    page = [named(context, request) for request in found[:limit]]
    names = await context.keys.names(sorted({request.key_id for request in page}))
    if asked.get("format") == "csv":
        rows = ({**asdict(one), "key": names.get(one.key_id, "")} for one in page)
        text = csv_text((*FinishedRequest.__struct_fields__, "key"), rows)
        return Response(text, 200, NO_STORE, "text/csv; charset=utf-8")
    return FinishedList(page, names, page[-1].number if len(found) > limit else None)


def named(context: Context, request: FinishedRequest) -> FinishedRequest:
    """The request with its relay's name in place of that one's id."""
    if not request.relay:
        return request
    return replace(request, relay=context.relays.name_of(request.relay))


ENDPOINTS: Final = (
    Endpoint(
        *("GET", "/requests/finished", list_finished),
        *("List the requests that are over", FinishedList),
        also="text/csv",
        query=(
            Query("key", str, "only this key: its id or name"),
            Query("model", str, "only this model, as asked for or as served"),
            Query("node", str, "only this node or provider"),
            Query("status", int, "only this HTTP status", 100, 599),
            Query("failed", bool, "only those that failed, or only the others"),
            Query("slow_ms", int, "only with so long to the first content", 0, MAX_SLOW_MS),
            Query("since", int, "only those that began at or after (seconds since 1970)"),
            Query("until", int, "only those that began before (seconds since 1970)"),
            Query("before", int, "the `next` of the page before"),
            Query("limit", int, f"at most so many ({DEFAULT_PAGE})", 1, MAX_PAGE),
            Query("format", str, "json or csv", choices=("json", "csv")),
        ),
    ),
)
