"""Query the stored sums by key, model, node, day or hour, for any period.

Whole days are read from the daily rows, the rest from the hourly ones. The hours of `since` and of
`until` are counted whole.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from typing import Any, Final

import msgspec

from wai_api.usage import Grouping, UsageRow
from wai_relay.contracts.histogram import quantile
from wai_relay.storage import Row, Store, Value

from .rollups import COUNTERS, DAY_S, HOUR_S

TIMES: Final = frozenset({"day", "hour"})  # told in order and whole, never as the most used
_COLUMNS: Final = {
    "key": "key_id",
    "label": "coalesce(label, '')",
    "model": "model",
    "node": "node",
}
_LABELLED: Final = " LEFT JOIN api_key_labels USING (key_id)"
_OF_LABEL: Final = "key_id IN (SELECT key_id FROM api_key_labels WHERE label = ${})"
_SUMS: Final = ", ".join(f"sum({name}) AS {name}" for name in COUNTERS)


class UsageTop(msgspec.Struct, frozen=True):
    """The groups with the most requests, and the sums of all others.

    `others`: one row with the group "", for the `other_groups` groups; None if there are none.
    """

    rows: list[UsageRow]
    others: UsageRow | None
    other_groups: int


class UsageReport:
    """Queries of the stored sums, which are at most one second old."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def usage(
        self,
        by: Grouping,
        since: float,
        until: float,
        *,
        key: str | None = None,
        label: str | None = None,
        model: str | None = None,
        node: str | None = None,
    ) -> list[UsageRow]:
        """Return the sums of the requests that began from `since` up to `until` (seconds since
        1970).

        `key` (an id), `label`, `model`, `node`: count only its requests. Days and hours are in
        order of time, other groups in order of most requests. Raises `StoreError`.
        """
        only = (("key_id", key), ("label", label), ("model", model), ("node", node))
        where, values = _where(by, since, until, only)
        group = _group_expression(by)
        # Only constants of this module are put into the SQL; other values are parameters.
        of_sums = f"SELECT {group} AS grp, {_SUMS} FROM {_from(by, 'usage_rollups')}"  # noqa: S608
        sums = await self._store.read(f"{of_sums} WHERE {where} GROUP BY grp", *values)
        timed = by in TIMES
        sums.sort(key=lambda row: row["grp"] if timed else (-row["requests"], row["grp"]))
        return await self._rows(by, sums, where, values)

    async def top(
        self,
        by: Grouping,
        since: float,
        until: float,
        most: int,
        *,
        key: str | None = None,
        label: str | None = None,
        model: str | None = None,
        node: str | None = None,
    ) -> UsageTop:
        """Like `usage` by key, model or node, but return at most `most` rows, and the rest as one.

        Its cost depends on `most`, not on the number of groups. Raises `StoreError`.
        """
        only = (("key_id", key), ("label", label), ("model", model), ("node", node))
        where, values = _where(by, since, until, only)
        column = _COLUMNS[by]
        rollups, ttft = _from(by, "usage_rollups"), _from(by, "usage_ttft")
        of_sums = f"SELECT {column} AS grp, {_SUMS} FROM {rollups} WHERE {where}"  # noqa: S608
        most_first = f"GROUP BY grp ORDER BY requests DESC, grp LIMIT ${len(values) + 1}"
        sums = await self._store.read(f"{of_sums} {most_first}", *values, most)
        if not sums:
            return UsageTop([], None, 0)
        named = ", ".join(f"${len(values) + 1 + n}" for n in range(len(sums)))
        chosen: list[Value] = [*values, *(row["grp"] for row in sums)]
        rows = await self._rows(by, sums, f"{where} AND {column} IN ({named})", chosen)
        if len(sums) < most:
            return UsageTop(rows, None, 0)
        others = f"{where} AND {column} NOT IN ({named})"
        of_rest = f"SELECT count(DISTINCT {column}) AS others, {_SUMS} FROM {rollups}"  # noqa: S608
        [rest] = await self._store.read(f"{of_rest} WHERE {others}", *chosen)
        number = rest.pop("others")
        if not number:
            return UsageTop(rows, None, 0)
        of_bins = f"SELECT bin, sum(requests) AS requests FROM {ttft}"  # noqa: S608
        counts = await self._store.read(f"{of_bins} WHERE {others} GROUP BY bin", *chosen)
        bins = {row["bin"]: int(row["requests"]) for row in counts}
        return UsageTop(rows, _row(rest, "", bins), number)

    async def last_used(self) -> dict[str, float]:
        """Return the start of the hour in which each key (by id) was last used."""
        # A daily row begins before its hours, which are kept for less time.
        rows = await self._store.read(
            "SELECT key_id, max(start) AS last FROM usage_rollups GROUP BY key_id"
        )
        return {row["key_id"]: float(row["last"]) for row in rows}

    async def groups(self, by: Grouping) -> set[str]:
        """Return all keys (ids), labels, models or nodes that any stored request is counted by."""
        column = _COLUMNS[by]
        table = _from(by, "usage_rollups")
        rows = await self._store.read(f"SELECT DISTINCT {column} AS grp FROM {table}")  # noqa: S608
        return {row["grp"] for row in rows if row["grp"]}

    async def _rows(
        self, by: Grouping, sums: list[Row], where: str, values: list[Value]
    ) -> list[UsageRow]:
        """Make rows from `sums`, and add the percentiles of the time to first token."""
        of_bins = f"SELECT {_group_expression(by)} AS grp, bin, sum(requests) AS requests"
        counts = await self._store.read(
            f"{of_bins} FROM {_from(by, 'usage_ttft')} WHERE {where} GROUP BY grp, bin",
            *values,
        )
        bins: defaultdict[Any, dict[int, int]] = defaultdict(dict)
        for row in counts:
            bins[row["grp"]][row["bin"]] = int(row["requests"])
        return [_row(row, _label(by, row["grp"]), bins[row["grp"]]) for row in sums]


def _from(by: Grouping, table: str) -> str:
    """The table to sum up; by label each row once for each label of its key."""
    return table + _LABELLED if by == "label" else table


def _group_expression(by: Grouping) -> str:
    # Part of a day may come from hourly rows, so the day is computed from their start.
    return {"hour": "start", "day": f"start - start % {DAY_S}"}.get(by) or _COLUMNS[by]


def _where(
    by: Grouping, since: float, until: float, only: tuple[tuple[str, str | None], ...]
) -> tuple[str, list[Value]]:
    begin = int(since) // HOUR_S * HOUR_S
    end = -(-int(-(-until // 1)) // HOUR_S) * HOUR_S
    first_day, last_day = -(-begin // DAY_S) * DAY_S, end // DAY_S * DAY_S
    values: list[Value] = [begin, end]
    if by == "hour" or first_day >= last_day:
        where = "span = 'hour' AND start >= $1 AND start < $2"
    else:
        values += [first_day, last_day]
        where = (
            "((span = 'day' AND start >= $3 AND start < $4)"
            " OR (span = 'hour' AND start >= $1 AND start < $3)"
            " OR (span = 'hour' AND start >= $4 AND start < $2))"
        )
    for column, value in only:
        if value is not None:
            values.append(value)
            equal = _OF_LABEL if column == "label" else f"{column} = ${{}}"
            where += f" AND {equal.format(len(values))}"
    return where, values


def _label(by: Grouping, group: Any) -> str:
    if by in _COLUMNS:
        return str(group)
    at = datetime.datetime.fromtimestamp(int(group), datetime.UTC)
    return at.strftime("%Y-%m-%d" if by == "day" else "%Y-%m-%dT%H:00Z")


def _row(row: Row, label: str, bins: dict[int, int]) -> UsageRow:
    figures = {name: row[name] for name in COUNTERS}
    decode_ms, decode_tokens = figures.pop("decode_ms"), figures.pop("decode_tokens")
    queue_ms = figures.pop("queue_ms") / row["requests"]
    return UsageRow(
        group=label,
        queue_ms=queue_ms,
        ttft_p50_ms=quantile(bins, 0.50),
        ttft_p99_ms=quantile(bins, 0.99),
        tokens_per_s=decode_tokens * 1000.0 / decode_ms if decode_ms > 0 else None,
        **figures,
    )
