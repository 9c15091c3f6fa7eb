"""Delete old usage in small steps, and only while the wall clock is reliable.

A wall clock that is wrong for a while must not cause usage to be deleted too early. So nothing is
deleted until it has agreed with the monotonic clock, without a jump, for `STEADY_S`; then the rows
of one hour are deleted per minute.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from wai_protocol.errors import StoreError
from wai_relay.storage import Store, Write

from .rollups import DAY_S, HOUR_S

PRUNE_INTERVAL_S: Final = 60.0
# Rows deleted at a time: 50 ms in the writer's thread, and enough for 300 requests a second.
PRUNE_ROWS: Final = 20_000
# Time span of the rows deleted at a time: sixty times as fast as rows are added.
PRUNE_SPAN_S: Final = HOUR_S
# Sums by hour are kept for a year and a month, for comparisons; sums by day for ever.
HOURS_KEPT_S: Final = 400 * DAY_S
# How long the clock must run without a jump: a machine that starts with a wrong time gets the right
# one from the network within a few minutes.
STEADY_S: Final = 600.0
# A larger change between two ticks is a jump: NTP corrects by no more than 30 ms in that time.
JUMP_S: Final = 30.0
# Number of batch ids that are kept: far more than can wait for their confirmation.
BATCHES_KEPT: Final = 10_000
# And of those that other relays wrote: one of them may be stopped with batches in its file of which
# it is not known whether they were stored. Two days of three busy relays; 80 MB.
OTHERS_BATCHES_KEPT: Final = 1_000_000

_PRUNE_RAW: Final = (
    "DELETE FROM usage_requests WHERE id IN"
    " (SELECT id FROM usage_requests WHERE started_at < $1"
    " AND started_at < (SELECT min(started_at) FROM usage_requests) + $2"
    " ORDER BY started_at LIMIT $3)"
)
_PRUNE_HOURS: Final = tuple(
    f"DELETE FROM {table} WHERE span = 'hour' AND start < $1"  # noqa: S608 - two constant names
    f" AND start < (SELECT min(start) FROM {table} WHERE span = 'hour') + $2"
    for table in ("usage_rollups", "usage_ttft")
)
_PRUNE_BATCHES: Final = (
    "DELETE FROM usage_batches WHERE number <= (SELECT max(number) FROM usage_batches) - $1"
)
_OF_WRITER: Final = " AND substr(id, 1, $2) = $3"

log = logging.getLogger("wai.usage")


class Pruning:
    """Deletes old usage. Call `tick` every `PRUNE_INTERVAL_S`.

    `retention_s`: returns how long raw rows are kept, in seconds. `now`, `wall`: the monotonic and
    the wall clock, in seconds. `writer`: how the ids of this relay's batches begin. `ours`: returns
    whether it is this relay that deletes what all relays wrote.
    """

    def __init__(
        self,
        store: Store,
        retention_s: Callable[[], float],
        now: float,
        wall: float,
        *,
        writer: str = "",
        ours: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store = store
        self._writer = writer
        self._ours = ours
        self._retention_s = retention_s
        self._offset = wall - now
        self._steady_since = now

    def tick(self, now: float, wall: float, *, spilled: bool) -> None:
        """Delete the rows that are due. `now` and `wall`: as in the constructor.

        `spilled`: batches of this relay wait in a file, so that their ids may not be deleted.
        """
        offset = wall - now
        if abs(offset - self._offset) > JUMP_S:
            log.warning("the clock jumped by %.0f s", offset - self._offset)
            self._steady_since = now
        self._offset = offset
        writes: list[Write] = []
        if now - self._steady_since >= STEADY_S and self._ours():
            hour = int(wall - HOURS_KEPT_S) // HOUR_S * HOUR_S
            raw = (wall - self._retention_s(), PRUNE_SPAN_S, PRUNE_ROWS)
            writes.append(Write(_PRUNE_RAW, raw))
            writes += [Write(statement, (hour, DAY_S)) for statement in _PRUNE_HOURS]
            if self._writer:
                writes.append(Write(_PRUNE_BATCHES, (OTHERS_BATCHES_KEPT,)))
        if not spilled:
            mine = _OF_WRITER if self._writer else ""
            values = (len(self._writer), self._writer) if self._writer else ()
            writes.append(Write(_PRUNE_BATCHES + mine, (BATCHES_KEPT, *values)))
        if not writes:
            return
        try:
            self._store.submit(*writes)
        except StoreError as error:
            log.warning("old usage was not deleted: %s", error)
