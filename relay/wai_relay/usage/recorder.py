"""Takes finished requests on the hot path and has them written in batches, a moment later.

`finish` appends to a list and adds to the month's sum; a timer hands what has gathered to
`delivery`, which sees it to the disk. A crash loses what is younger than `FLUSH_INTERVAL_S` and the
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
from pathlib import Path
from typing import Final

from wai_protocol.errors import StoreError
from wai_relay.contracts.records import RequestRecord, TokenCounts, UsageState
from wai_relay.policy.months import MonthTokens, month_of
from wai_relay.storage import Row, Store

from .batches import Batch, Counted, batches_of, read_batch
from .delivery import CallLater, Delivery, Timer
from .pruning import PRUNE_INTERVAL_S, Pruning
from .side_file import SideFile

FLUSH_INTERVAL_S: Final = 0.5  # half of the second that a crash may cost; the disk has the other
# More than this are written at once: to build their rows takes the loop half a millisecond, which
# no token should wait behind for longer.
BATCH_RECORDS: Final = 100
MAX_MODELS: Final = 1024  # names counted apart; a node that makes up names fills this and no more

# Tries to read the month's sums with nothing of ours written meanwhile; a read takes milliseconds,
# and we write every half second.
CATCH_UP_TRIES: Final = 5

_MONTH: Final = (
    "SELECT key_id, model, sum(prompt_tokens + completion_tokens) AS tokens FROM usage_rollups"
    " WHERE span = 'day' AND start >= $1 AND start < $2 GROUP BY key_id, model"
)

log = logging.getLogger("wai.usage")


class UsageRecorder:
    """The relay's `Recorder`. Make it with `load`, end it with `close`; belongs to one loop.

    `retention_s` is asked each time old rows are looked for, so that the setting can change.
    `folder` is where usage is kept that the store does not take.
    """

    def __init__(
        self,
        store: Store,
        retention_s: Callable[[], float],
        folder: Path | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        call_later: CallLater | None = None,
    ) -> None:
        self._store = store
        self._wall_clock = wall_clock
        self._call_later = call_later or _call_later
        self._folder = folder
        self._side = SideFile.of_process(folder) if folder is not None else None
        self._delivery = Delivery(store, self._side, self._on_written, self._call_later)
        self._pruning = Pruning(store, retention_s, clock(), wall_clock())
        self._clock = clock
        self._pending: list[RequestRecord] = []
        self._corrections: list[Counted] = []
        self._models: set[str] = set()
        self.months = MonthTokens(wall_clock())
        """The tokens of every key this month."""
        self._written = MonthTokens(wall_clock())  # of them, what we know to be in the database
        self._batches_written = 0
        self._elsewhere: dict[int, dict[str, int]] = {}  # and what others wrote there, by month
        self._timer: Timer | None = None
        self._tick_timer: Timer | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def load(
        cls,
        store: Store,
        retention_s: Callable[[], float],
        folder: Path | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        call_later: CallLater | None = None,
    ) -> UsageRecorder:
        """A recorder that knows what this month has cost so far, also what a relay that was killed
        could not write. Raises `StoreError`."""
        recorder = cls(
            *(store, retention_s, folder),
            wall_clock=wall_clock,
            clock=clock,
            call_later=call_later,
        )
        begin = recorder.months.begin(wall_clock())
        rows = await store.read(_MONTH, begin, month_of(begin)[1])
        recorder._note_elsewhere(begin, rows)
        for row in rows:
            recorder._learn(row["model"])
        recorder.months.on_unknown = lambda begin: recorder._in_background()
        if recorder._side is not None:
            try:
                await asyncio.to_thread(recorder._side.prepare)
            except OSError as error:
                log.warning("no room is kept for usage that can't be written: %s", error)
        await recorder._adopt()
        recorder._tick_timer = recorder._call_later(PRUNE_INTERVAL_S, recorder._on_tick)
        return recorder

    @property
    def state(self) -> UsageState:
        """How the books are kept."""
        waiting = len(self._pending) + self._delivery.unwritten
        return UsageState(waiting, self._delivery.lost, behind=self._delivery.failing)

    # -- the hot path
    def finish(self, record: RequestRecord) -> None:
        """See `Recorder`."""
        record.handed_over = True
        if record.key_id:
            self.months.add(record.key_id, record.started_at, record.tokens.total)
        self._pending.append(record)
        if len(self._pending) >= BATCH_RECORDS:
            self.flush()
        else:
            self._arm()

    def correct(self, record: RequestRecord, tokens: TokenCounts) -> None:
        """See `Corrector`."""
        before, record.tokens = record.tokens, tokens
        if not record.handed_over:
            return  # `finish` will count it
        if record.key_id:
            more = tokens.total - before.total
            self.months.add(record.key_id, record.started_at, more)
        if any(pending is record for pending in self._pending):
            return
        self._corrections.append(Counted(record, self._model_of(record), tokens, before))
        self._arm()

    # -- a moment later
    def flush(self) -> None:
        """Have written what has gathered, in transactions of at most `BATCH_RECORDS`."""
        counted = [Counted(each, self._model_of(each), each.tokens) for each in self._pending]
        counted += self._corrections
        self._pending.clear()
        self._corrections.clear()
        for batch in batches_of(counted, BATCH_RECORDS):
            self._delivery.add(batch)

    async def settle(self) -> None:
        """Return when all that is over is written, or can't be for now."""
        self.flush()
        await self._delivery.wait()

    async def catch_up(self) -> None:
        """Add to the month what others have written into the same books since we looked last.

        Raises `StoreError`.
        """
        for _ in range(CATCH_UP_TRIES):
            await self.settle()
            begin = self.months.begin(self._wall_clock())
            before = self._batches_written
            rows = await self._store.read(_MONTH, begin, month_of(begin)[1])
            if self._delivery.idle and self._batches_written == before:
                self._note_elsewhere(begin, rows)
                return

    def _note_elsewhere(self, begin: int, rows: list[Row]) -> None:
        """`rows`: the sums of the month that began at `begin`, ours included as far as they are
        written."""
        stored: Counter[str] = Counter()
        for row in rows:
            stored[row["key_id"]] += int(row["tokens"])
        ours = self._written.all(begin)
        elsewhere = self._elsewhere.setdefault(begin, {})
        for key_id, tokens in stored.items():
            others = tokens - ours.get(key_id, 0)
            self.months.add(key_id, begin, others - elsewhere.get(key_id, 0))
            elsewhere[key_id] = others
        self.months.know(begin)

    async def close(self) -> None:
        """Write the rest, or leave it where the next relay finds it; before the store's `close`."""
        for timer in (self._timer, self._tick_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._tick_timer = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        self.flush()
        await self._delivery.close()

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self._call_later(FLUSH_INTERVAL_S, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.flush()

    def _on_written(self, batch: Batch) -> None:
        self._batches_written += 1
        for each in batch.counted:
            self._written.add(each.record.key_id, each.record.started_at, each.more)

    def _model_of(self, record: RequestRecord) -> str:
        """What a request is counted under. A name counts once a node was found for it; from then
        on refusals count under it too. All else is "", so that callers can't make up names."""
        if record.attempts:
            self._learn(record.model)
        return record.model if record.model in self._models else ""

    def _learn(self, model: str) -> None:
        if len(self._models) < MAX_MODELS:
            self._models.add(model)

    # -- now and then
    def _on_tick(self) -> None:
        self._pruning.tick(self._clock(), self._wall_clock(), spilled=self._delivery.spilled)
        self._in_background()
        self._tick_timer = self._call_later(PRUNE_INTERVAL_S, self._on_tick)

    def _in_background(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look_around())

    async def _look_around(self) -> None:
        """Take over what a process left that has ended, and look up a month that the clock came
        into."""
        try:
            await self._adopt()
            if not self.months.knows(self._wall_clock()):
                await self.catch_up()
        except StoreError as error:
            log.warning("what other relays have counted is not known: %s", error)

    async def _adopt(self) -> None:
        """Count and have written what a process left in its file that has ended."""
        if self._folder is None:
            return
        found: list[SideFile] = []
        try:
            found = await asyncio.to_thread(SideFile.left_behind, self._folder)
            while found:
                await self._take_over(found[-1])
                found.pop()
        except OSError as error:
            log.error("usage that was left by a relay that ended cannot be read: %s", error)
        finally:
            for side in found:  # for another try
                side.close()

    async def _take_over(self, side: SideFile) -> None:
        rows = await self._store.read("SELECT id FROM usage_batches")
        stored = {row["id"] for row in rows}
        requests, tokens, settled = await asyncio.to_thread(_sums, side, stored)
        for (key_id, begin), more in tokens.items():
            self.months.add(key_id, begin, more)
        if requests:
            log.warning("%d requests were not written by a relay that ended", requests)
        self._delivery.adopt(side, requests, settled)


def _sums(side: SideFile, stored: set[str]) -> tuple[int, Counter[tuple[str, int]], list[str]]:
    """Of what `side` has and the database has not: how many requests, and each key's tokens by
    month; then the ids of what both have."""
    requests, tokens, settled = 0, Counter[tuple[str, int]](), list[str]()
    for line in side.lines():
        try:
            batch = read_batch(line)
        except StoreError:
            continue  # the delivery says so when it comes to it
        if batch.id in stored:
            settled.append(batch.id)
            continue
        requests += batch.requests
        for each in batch.counted:
            if each.record.key_id:
                begin = month_of(each.record.started_at)[0]
                tokens[each.record.key_id, begin] += each.more
    return requests, tokens, settled


def _call_later(delay_s: float, call: Callable[[], None]) -> Timer:
    return asyncio.get_running_loop().call_later(delay_s, call)
