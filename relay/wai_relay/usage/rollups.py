"""Build the transaction that stores finished requests: raw rows, and additions to the roll-ups.

A roll-up is the sum of the requests of one hour or day, key, model and node. The requests of a
batch that belong to the same roll-up are summed here, so that the database gets one upsert for
them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Final, NamedTuple

import msgspec

from wai_relay.contracts.histogram import bin_of
from wai_relay.contracts.records import RequestRecord, TokenCounts
from wai_relay.storage import Write

HOUR_S: Final = 3600
DAY_S: Final = 86400
MAX_PATH_CHARS: Final = 128  # longer than every route that is served
_SPANS: Final = (("hour", HOUR_S), ("day", DAY_S))


class Figures(msgspec.Struct):
    """The sums of a roll-up; its fields are the columns of `usage_rollups`."""

    requests: int = 0
    errors: int = 0
    cancelled: int = 0
    fallbacks: int = 0
    retried: int = 0
    estimated: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    queue_ms: float = 0.0
    decode_tokens: int = 0
    decode_ms: float = 0.0
    cost: float = 0.0

    @classmethod
    def of(cls, records: Sequence[RequestRecord]) -> Figures:
        """Return the sums of `records`, of which there is at least one."""
        sums = map(sum, zip(*map(_summed, records), strict=True))
        cancelled, errors, fallbacks, prompt, cached, completion, *of_bytes, queue_ms, cost = sums
        figures = cls(
            requests=len(records),
            errors=errors,
            cancelled=cancelled,
            fallbacks=fallbacks,
            retried=sum([record.attempts > 1 for record in records]),
            estimated=sum([_estimated(record.tokens) for record in records]),
            prompt_tokens=prompt,
            cached_tokens=cached,
            completion_tokens=completion,
            bytes_in=of_bytes[0],
            bytes_out=of_bytes[1],
            queue_ms=queue_ms,
            cost=cost,
        )
        for record in records:
            if record.ttft_ms is not None and record.tokens.completion > 1:
                figures.decode_tokens += record.tokens.completion - 1
                figures.decode_ms += record.duration_ms - record.ttft_ms
        return figures

    def merge(self, other: Figures) -> None:
        """Add the sums of `other`."""
        for name in COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Group(NamedTuple):
    """The key of a roll-up's row, without its span. `start`: seconds since 1970."""

    start: int
    key_id: str
    model: str
    node: str


_summed: Final = attrgetter(  # one call in C for what is added up as it is
    *("cancelled", "failed", "fallback", "tokens.prompt", "tokens.cached", "tokens.completion"),
    *("bytes_in", "bytes_out", "queue_ms", "cost"),
)
COUNTERS: Final = Figures.__struct_fields__
_values: Final = attrgetter(*COUNTERS)
_by_group: Final = itemgetter(0)
_GROUP: Final = ("span", *Group._fields)


def _upsert(table: str, key: tuple[str, ...], counters: tuple[str, ...]) -> str:
    columns = (*key, *counters)
    places = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
    sums = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in counters)
    return (  # every name in it is a constant of this module
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})"  # noqa: S608
        f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {sums}"
    )


_ADD_FIGURES: Final = _upsert("usage_rollups", _GROUP, COUNTERS)
_ADD_TTFT: Final = _upsert("usage_ttft", (*_GROUP, "bin"), ("requests",))
_RAW_COLUMNS: Final = (
    *("request_id", "started_at", "path", "key_id", "model", "served_model", "node", "status"),
    *("fault", "reason", "prompt_tokens", "cached_tokens", "completion_tokens", "exact"),
    *("queue_ms", "ttft_ms", "duration_ms", "tokens_per_s", "bytes_in", "bytes_out", "attempts"),
    *("stream", "cancelled", "fallback", "continued", "cost", "relay"),
)
_ADD_RAW: Final = (
    f"INSERT INTO usage_requests ({', '.join(_RAW_COLUMNS)})"  # noqa: S608 - the constant above
    f" VALUES ({', '.join(f'${n}' for n in range(1, len(_RAW_COLUMNS) + 1))})"
)
_SET_RAW: Final = (
    "UPDATE usage_requests SET prompt_tokens = $1, cached_tokens = $2, completion_tokens = $3,"
    " exact = $4 WHERE started_at = $5 AND request_id = $6"
)


def writes_for(batch: Iterable[tuple[RequestRecord, str]]) -> list[Write]:
    """Return the transaction that stores `batch`: pairs of a request and the model it counts for.

    A request without a valid key gets no raw row, because anybody could fill the disk with those.
    """
    writes: list[Write] = []
    grouped: defaultdict[tuple[int, str, str, str], list[RequestRecord]] = defaultdict(list)
    for record, model in batch:
        hour = int(record.started_at) // HOUR_S * HOUR_S
        grouped[hour, record.key_id, model, record.node].append(record)
        if record.key_id:
            writes.append(Write(_ADD_RAW, _raw(record, model)))
    hours: dict[Group, Figures] = {}
    first_tokens: dict[tuple[Group, int], int] = {}
    for place, records in grouped.items():
        group = Group(*place)
        hours[group] = Figures.of(records)
        times = Counter([bin_of(one.ttft_ms) for one in records if one.ttft_ms is not None])
        first_tokens |= {(group, number): count for number, count in times.items()}
    # Nearly all batches are of one hour, whose sums are then also those of the day.
    one_hour = len({group.start for group in hours}) == 1
    for span, length_s in _SPANS:
        sums, bins = (hours, first_tokens) if one_hour else _merged(hours, first_tokens, length_s)
        start = _start_of(next(iter(hours)), length_s) if one_hour else None
        # In order, because two relays that change the same rows in other orders would deadlock.
        for group, total in sorted(sums.items(), key=_by_group):
            key = group if start is None else (start, *group[1:])
            writes.append(Write(_ADD_FIGURES, (span, *key, *_values(total))))
        for (group, number), requests in sorted(bins.items()):
            key = group if start is None else (start, *group[1:])
            writes.append(Write(_ADD_TTFT, (span, *key, number, requests)))
    return writes


def _merged(
    hours: Mapping[Group, Figures], first_tokens: Mapping[tuple[Group, int], int], length_s: int
) -> tuple[dict[Group, Figures], dict[tuple[Group, int], int]]:
    """Merge the hourly sums into spans of `length_s` seconds."""
    sums: defaultdict[Group, Figures] = defaultdict(Figures)
    for group, figures in hours.items():
        sums[_widened(group, length_s)].merge(figures)
    bins: defaultdict[tuple[Group, int], int] = defaultdict(int)
    for (group, number), requests in first_tokens.items():
        bins[_widened(group, length_s), number] += requests
    return sums, bins


def correction(
    record: RequestRecord, model: str, before: TokenCounts, after: TokenCounts
) -> list[Write]:
    """Return the transaction that changes a stored request's tokens from `before` to `after`."""
    more = Figures(
        estimated=_estimated(after) - _estimated(before),
        prompt_tokens=after.prompt - before.prompt,
        cached_tokens=after.cached - before.cached,
        completion_tokens=after.completion - before.completion,
    )
    hour = int(record.started_at) // HOUR_S * HOUR_S
    group = Group(hour, record.key_id, model, record.node)
    writes = [
        Write(
            _ADD_FIGURES,
            (span, *_widened(group, length_s), *_values(more)),
        )
        for span, length_s in _SPANS
    ]
    if record.key_id:
        figures = (after.prompt, after.cached, after.completion, int(after.exact))
        writes.append(Write(_SET_RAW, (*figures, record.started_at, record.request_id)))
    return writes


def _estimated(tokens: TokenCounts) -> int:
    return int(not tokens.exact and tokens.total > 0)


def _widened(group: Group, length_s: int) -> Group:
    return group._replace(start=_start_of(group, length_s))


def _start_of(group: Group, length_s: int) -> int:
    return group.start // length_s * length_s


_after_model: Final = attrgetter(  # one call in C for the columns that are fields
    *("served_model", "node", "status", "fault", "reason"),
    *("tokens.prompt", "tokens.cached", "tokens.completion", "tokens.exact"),
    *("queue_ms", "ttft_ms", "duration_ms", "tokens_per_second", "bytes_in", "bytes_out"),
    *("attempts", "stream", "cancelled", "fallback", "continued", "cost", "relay"),
)


def _raw(record: RequestRecord, model: str) -> tuple[str | int | float | None, ...]:
    return (
        *(record.request_id, record.started_at, record.path[:MAX_PATH_CHARS], record.key_id),
        *(model, *_after_model(record)),
    )
