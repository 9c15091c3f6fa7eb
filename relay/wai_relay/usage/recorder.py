"""Takes finished requests on the hot path and writes them in batches, a moment later.

`finish` appends to a list and adds to the month's sum; a timer hands what has gathered to the
store, whose thread does the rest. A crash loses what is younger than `FLUSH_INTERVAL_S` and the
disk's own time; an orderly stop loses nothing (`close`, before the store's).

What a request cost that was given up may be known only later: `correct` sets it right, wherever it
is by then. And while the relay before this one finishes what it has, its requests come into the
same books without us: `catch_up` adds them to the month.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Protocol

from wai_protocol.errors import StoreError
from wai_relay.observe.records import RequestRecord, TokenCounts
from wai_relay.policy.months import MonthTokens
from wai_relay.storage import Row, Store, Write

from .rollups import DAY_S, HOUR_S, correction, writes_for

FLUSH_INTERVAL_S: Final = 0.5  # half of the second that a crash may cost; the disk has the other
# More than this are written at once: to build their rows takes the loop half a millisecond, which
# no token should wait behind for longer.
BATCH_RECORDS: Final = 100
# What may be kept while the store takes no more (a disk that stalls); then the oldest are given up.
MAX_HELD: Final = 20_000
MAX_MODELS: Final = 1024  # names counted apart; a node that makes up names fills this and no more
PRUNE_INTERVAL_S: Final = 60.0
# Rows deleted at a time: 50 ms of the writer's thread; 300 requests a second can't outgrow it.
PRUNE_ROWS: Final = 20_000
HOURS_KEPT_S: Final = 400 * DAY_S  # by the hour a year and a month, to compare; by the day for good

# Tries to read the month's sums with nothing of ours written meanwhile; a read takes milliseconds,
# and we write every half second.
CATCH_UP_TRIES: Final = 5

_MONTH: Final = (
    "SELECT key_id, model, sum(prompt_tokens + completion_tokens) AS tokens"
    " FROM usage_rollups WHERE span = 'day' AND start >= $1 GROUP BY key_id, model"
)
_PRUNE_RAW: Final = (
    "DELETE FROM usage_requests WHERE id IN"
    " (SELECT id FROM usage_requests WHERE started_at < $1 ORDER BY started_at LIMIT $2)"
)
_PRUNE_HOURS: Final = tuple(
    f"DELETE FROM {table} WHERE span = 'hour' AND start < $1"  # noqa: S608 - our own two names
    for table in ("usage_rollups", "usage_ttft")
)

log = logging.getLogger("wai.usage")

CallLater = Callable[[float, Callable[[], None]], Any]


class Timer(Protocol):
    """What `call_later` gives."""

    def cancel(self) -> None:
        """Never call back."""


class UsageRecorder:
    """The relay's `Recorder`. Make it with `load`, end it with `close`; belongs to one loop.

    `retention_s` is asked each time old rows are looked for, so that the setting can change.
    """

    def __init__(
        self,
        store: Store,
        retention_s: Callable[[], float],
        *,
        wall_clock: Callable[[], float] = time.time,
        call_later: CallLater | None = None,
    ) -> None:
        self._store = store
        self._retention_s = retention_s
        self._wall_clock = wall_clock
        self._call_later = call_later or _call_later
        self._pending: list[RequestRecord] = []
        self._models: set[str] = set()
        self.months = MonthTokens(wall_clock())
        """The tokens of every key this month."""
        self._written = MonthTokens(wall_clock())  # of them, what we have handed to the store
        self._elsewhere: dict[str, int] = {}  # and what others had, before us or beside us
        self._month_begin = self.months.begin(self._wall_clock())  # of `_elsewhere`
        self._timer: Timer | None = None
        self._prune_timer: Timer | None = None
        self.lost = 0
        """Requests that were served and could not be kept."""

    @classmethod
    async def load(
        cls,
        store: Store,
        retention_s: Callable[[], float],
        *,
        wall_clock: Callable[[], float] = time.time,
        call_later: CallLater | None = None,
    ) -> UsageRecorder:
        """A recorder that knows what this month has cost so far. Raises `StoreError`."""
        recorder = cls(store, retention_s, wall_clock=wall_clock, call_later=call_later)
        rows = await store.read(_MONTH, recorder.months.begin(wall_clock()))
        recorder._note_elsewhere(rows)
        for row in rows:
            recorder._learn(row["model"])
        recorder._prune()
        return recorder

    # -- the hot path
    def finish(self, record: RequestRecord) -> None:
        """See `Recorder`."""
        record.handed_over = True
        if record.key_id:
            self.months.add(record.key_id, record.started_at, record.tokens.total)
        self._pending.append(record)
        if len(self._pending) % BATCH_RECORDS == 0:
            self.flush()
        elif self._timer is None:
            self._timer = self._call_later(FLUSH_INTERVAL_S, self._on_timer)

    def correct(self, record: RequestRecord, tokens: TokenCounts) -> None:
        """See `Corrector`."""
        before, record.tokens = record.tokens, tokens
        if not record.handed_over:
            return  # `finish` will count it
        more = tokens.total - before.total
        if record.key_id:
            self.months.add(record.key_id, record.started_at, more)
        if any(pending is record for pending in self._pending):
            return
        try:
            self._store.submit(*correction(record, self._model_of(record), before))
        except StoreError as error:
            log.error("%s stays estimated in the usage: %s", record.request_id, error)
        else:
            self._written.add(record.key_id, record.started_at, more)

    # -- a moment later
    def flush(self) -> None:
        """Hand over what has gathered, in transactions of at most `BATCH_RECORDS`."""
        while self._pending:
            batch = [(record, self._model_of(record)) for record in self._pending[:BATCH_RECORDS]]
            try:
                self._store.submit(*writes_for(batch))
            except StoreError as error:
                self._hold(error)
                return
            del self._pending[: len(batch)]
            for record, _ in batch:
                self._written.add(record.key_id, record.started_at, record.tokens.total)

    async def catch_up(self) -> None:
        """Add to the month what others have written into the same books since we looked last.

        Raises `StoreError`.
        """
        for _ in range(CATCH_UP_TRIES):
            self.flush()
            now = self._wall_clock()
            ours = self._written.all(self._written.begin(now))
            await self._store.write()  # on return all that was submitted is there to be read
            rows = await self._store.read(_MONTH, self.months.begin(self._wall_clock()))
            if self._written.all(self._written.begin(now)) == ours:
                self._note_elsewhere(rows)
                return

    def _note_elsewhere(self, rows: list[Row]) -> None:
        """`rows`: the month's sums, ours included as far as they are written."""
        now = self._wall_clock()
        stored: Counter[str] = Counter()
        for row in rows:
            stored[row["key_id"]] += int(row["tokens"])
        ours = self._written.all(self._written.begin(now))
        if self._month_begin != self.months.begin(self._wall_clock()):
            self._month_begin = self.months.begin(self._wall_clock())
            self._elsewhere.clear()
        for key_id, tokens in stored.items():
            others = tokens - ours.get(key_id, 0)
            self.months.add(
                key_id,
                self.months.begin(self._wall_clock()),
                others - self._elsewhere.get(key_id, 0),
            )
            self._elsewhere[key_id] = others

    def close(self) -> None:
        """Hand over the rest; the store's own `close` sees it to the disk."""
        for timer in (self._timer, self._prune_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._prune_timer = None
        self.flush()
        if self._pending:
            log.error("the usage of %d requests is lost", len(self._pending))

    def _on_timer(self) -> None:
        self._timer = None
        self.flush()
        if self._pending:
            self._timer = self._call_later(FLUSH_INTERVAL_S, self._on_timer)

    def _hold(self, error: StoreError) -> None:
        """The store takes no more: try again later, with as much as memory may hold."""
        if excess := max(len(self._pending) - MAX_HELD, 0):
            del self._pending[:excess]
            self.lost += excess
            log.error("the usage of %d requests is lost: %s", excess, error)

    def _model_of(self, record: RequestRecord) -> str:
        """What a request is counted under. A name counts once a node was found for it; from then
        on refusals count under it too. All else is "", so that callers can't make up names."""
        if record.attempts:
            self._learn(record.model)
        return record.model if record.model in self._models else ""

    def _learn(self, model: str) -> None:
        if len(self._models) < MAX_MODELS:
            self._models.add(model)

    def _prune(self) -> None:
        now = self._wall_clock()
        hour = int(now - HOURS_KEPT_S) // HOUR_S * HOUR_S
        try:
            self._store.submit(
                Write(_PRUNE_RAW, (now - self._retention_s(), PRUNE_ROWS)),
                *(Write(statement, (hour,)) for statement in _PRUNE_HOURS),
            )
        except StoreError as error:
            log.warning("old usage was not deleted: %s", error)
        self._prune_timer = self._call_later(PRUNE_INTERVAL_S, self._prune)


def _call_later(delay_s: float, call: Callable[[], None]) -> Timer:
    return asyncio.get_running_loop().call_later(delay_s, call)
