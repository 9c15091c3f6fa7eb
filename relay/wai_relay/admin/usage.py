"""What requests cost: sums by key, model, node, day or hour."""

from __future__ import annotations

from typing import Any, Final, cast

from msgspec.structs import asdict
from starlette.responses import Response

from wai_api.usage import GROUPINGS, Grouping, UsageList, UsageRow
from wai_protocol.errors import RequestError
from wai_relay.access.naming import unknown
from wai_relay.usage.csv_text import csv_text
from wai_relay.usage.report import TIMES
from wai_relay.usage.rollups import DAY_S

from .context import Context
from .endpoint import NO_STORE, Call, Endpoint, Query

DEFAULT_DAYS: Final = 7
MAX_HOURS_ASKED_S: Final = 31 * DAY_S  # by the hour: each is a row, for each hour there is
MAX_TOP: Final = 500  # rows: more than that is what the CSV is for
_NAMED: Final = ("label", "model", "node")
_COLUMNS: Final = UsageRow.__struct_fields__


async def get_usage(context: Context, call: Call) -> UsageList | Response:
    """The sums; as CSV with `format=csv`."""
    asked: dict[str, Any] = call.query
    by = cast(Grouping, asked.get("by", "day"))
    until = float(asked.get("until", context.clock()))
    since = float(asked.get("since", max(until - DEFAULT_DAYS * DAY_S, 0.0)))
    if since >= until:
        raise RequestError("since must be before until")
    if by == "hour" and until - since > MAX_HOURS_ASKED_S:
        raise RequestError("by the hour, ask for at most 31 days")
    only = await only_asked_for(context, asked)
    others, other_groups = None, 0
    if most := asked.get("limit"):
        if by in TIMES or asked.get("format") == "csv":
            raise RequestError("limit goes with by=key, by=model or by=node, and not with csv")
        top = await context.usage.top(by, since, until, most, **only)
        rows, others, other_groups = top.rows, top.others, top.other_groups
    else:
        rows = await context.usage.usage(by, since, until, **only)
    names: dict[str, str] = {}
    if by == "key":
        names = await context.keys.names([row.group for row in rows] if most else None)
    if asked.get("format") == "csv":
        named = ({**asdict(row), "name": names.get(row.group, "")} for row in rows)
        text = csv_text(("group", "name", *_COLUMNS[1:]), named)
        return Response(text, 200, NO_STORE, "text/csv; charset=utf-8")
    shown = {row.group: names[row.group] for row in rows if row.group in names}
    return UsageList(by, since, until, rows, shown, others, other_groups)


async def only_asked_for(context: Context, asked: dict[str, Any]) -> dict[str, str | None]:
    """Which key (its id), model and node is asked for. Raises `RequestError` for an unknown one."""
    only: dict[str, str | None] = {}
    for kind in _NAMED:
        if kind in asked:
            only[kind] = name = asked[kind]
            used = await context.usage.groups(cast(Grouping, kind))
            known = used | _live_names(context, kind)
            if name not in known:
                raise unknown(kind, name, known)
    key = asked.get("key")
    only["key"] = (await context.keys.named_of_all(key)).id if key is not None else None
    return only


def _live_names(context: Context, kind: str) -> set[str]:
    if kind == "label":
        return context.keys.labels()
    if kind == "node":
        return {node.record.name for node in context.fleet.nodes()}
    return {model.id for node in context.fleet.nodes() for model in node.status.models}


ENDPOINTS: Final = (
    Endpoint(
        *("GET", "/usage", get_usage, "Add up what requests cost", UsageList),
        also="text/csv",
        query=(
            Query("by", str, "what the rows are for (day)", choices=GROUPINGS),
            Query("since", int, "seconds since 1970 (seven days before `until`)"),
            Query("until", int, "seconds since 1970 (now)"),
            Query("key", str, "only this key: its id or name"),
            Query("label", str, "only the keys with this label"),
            Query("model", str, "only this model"),
            Query("node", str, "only this node"),
            Query("limit", int, "the most used only, and the others as one row (all)", 1, MAX_TOP),
            Query("format", str, "json or csv", choices=("json", "csv")),
        ),
    ),
)
