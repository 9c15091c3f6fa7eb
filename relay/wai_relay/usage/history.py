"""The finished requests of callers with a valid key, as far back as raw rows are kept.

What refused callers sent is not among them: anybody could fill the disk with that.
"""

from __future__ import annotations

from typing import Final

import msgspec

from wai_api.requests import FinishedRequest
from wai_relay.contracts.records import PastRequest
from wai_relay.storage import Row, Store, Value

MAX_PAGE: Final = 500  # rows; more are read page by page

_COLUMNS: Final = (
    *("id", "request_id", "started_at", "path", "key_id", "model", "served_model", "node"),
    *("status", "fault", "reason", "prompt_tokens", "cached_tokens", "completion_tokens", "exact"),
    *("queue_ms", "ttft_ms", "duration_ms", "tokens_per_s", "bytes_in", "bytes_out", "attempts"),
    *("stream", "cancelled", "fallback", "continued", "cost", "relay"),
)
_PAST: Final = (
    *("started_at", "node", "ttft_ms", "duration_ms", "completion_tokens", "attempts", "status"),
    "cancelled",
)
_SELECT: Final = f"SELECT {', '.join(_COLUMNS)} FROM usage_requests"  # noqa: S608 - constants
_BEFORE: Final = "(started_at, id) < (SELECT started_at, id FROM usage_requests WHERE id = ${})"
_FAILED: Final = "(cancelled = 0 AND (status >= 400 OR fault <> ''))"  # as `RequestRecord.failed`


class HistoryFilter(msgspec.Struct, frozen=True):
    """Which requests are asked for; None: any.

    `key`: an id. `model`: as it was asked for, or as the upstream was. `failed`: those whose caller
    did not get what it asked for, or the others. `slow_ms`: the first content came after so many
    milliseconds or more, or never in so long. `since`, `until`: when it began, in seconds since
    1970, the second exclusive.
    """

    key: str | None = None
    model: str | None = None
    node: str | None = None
    status: int | None = None
    failed: bool | None = None
    slow_ms: int | None = None
    since: float | None = None
    until: float | None = None


class RequestHistory:
    """Queries of the stored requests, which are at most one second old."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(
        self, wanted: HistoryFilter, limit: int, *, before: int | None = None
    ) -> list[FinishedRequest]:
        """Return at most `limit` requests, the latest first.

        `before`: the `number` of the last request of the page before this one. Raises `StoreError`.
        """
        clauses, values = _where(wanted)
        if before is not None:
            values.append(before)
            clauses.append(_BEFORE.format(len(values)))
        values.append(limit)
        rows = await self._store.read(
            f"{_SELECT} WHERE {' AND '.join(clauses) or 'TRUE'}"
            f" ORDER BY started_at DESC, id DESC LIMIT ${len(values)}",
            *values,
        )
        return [_request(row) for row in rows]

    async def past(self, since: float, limit: int, relay: str = "") -> list[PastRequest]:
        """Return what began from `since` on (seconds since 1970), at most the `limit` latest.

        `relay`: the id of the one that they came by. Raises `StoreError`.
        """
        rows = await self._store.read(
            f"SELECT {_FAILED} AS failed, {', '.join(_PAST)} FROM usage_requests"  # noqa: S608
            " WHERE started_at >= $1 AND relay = $3 ORDER BY started_at DESC LIMIT $2",
            *(since, limit, relay),
        )
        return [
            PastRequest(
                began_at=row["started_at"],
                node=row["node"],
                ttft_ms=row["ttft_ms"],
                duration_ms=row["duration_ms"],
                completion_tokens=row["completion_tokens"],
                attempts=row["attempts"],
                status=row["status"],
                failed=bool(row["failed"]),
                cancelled=bool(row["cancelled"]),
            )
            for row in rows
        ]

    async def find(self, request_id: str) -> FinishedRequest | None:
        """Return the request with this id, None if it is not kept. Raises `StoreError`."""
        rows = await self._store.read(
            f"{_SELECT} WHERE request_id = $1 ORDER BY started_at DESC LIMIT 1", request_id
        )
        return _request(rows[0]) if rows else None


def _where(wanted: HistoryFilter) -> tuple[list[str], list[Value]]:
    """Return the conditions and their parameters."""
    clauses: list[str] = []
    values: list[Value] = []
    for condition, value in (
        ("key_id = $", wanted.key),
        ("node = $", wanted.node),
        ("status = $", wanted.status),
        ("started_at >= $", wanted.since),
        ("started_at < $", wanted.until),
        ("coalesce(ttft_ms, duration_ms) >= $", wanted.slow_ms),
    ):
        if value is not None:
            values.append(value)
            clauses.append(f"{condition}{len(values)}")
    if wanted.model is not None:
        values.append(wanted.model)
        clauses.append(f"(model = ${len(values)} OR served_model = ${len(values)})")
    if wanted.failed is not None:
        clauses.append(_FAILED if wanted.failed else f"NOT {_FAILED}")
    return clauses, values


def _request(row: Row) -> FinishedRequest:
    fields = {name: row[name] for name in _COLUMNS if name not in ("id", "request_id", "exact")}
    for name in ("stream", "cancelled", "fallback"):
        fields[name] = bool(fields[name])
    return FinishedRequest(
        number=row["id"], id=row["request_id"], tokens_exact=bool(row["exact"]), **fields
    )
