"""Record finished requests in memory, and write them to the database in batches shortly after.

`finish` runs on the hot path: it appends to a list and adds to the month's sum. A timer passes the
list to `delivery`, which writes it to disk. A crash loses the requests of the last
`FLUSH_INTERVAL_S` and of the current write; `close` loses nothing (call it before the store's).

The tokens of a cancelled request may be known only later: `correct` changes the request, in memory
or in the database. During an upgrade, the old relay still writes its last requests to the same
database: `catch_up` adds them to the month's sums.
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
from .spill_file import SpillFile

# A crash may lose one second of usage: half of it waits here, the other half is for the disk.
FLUSH_INTERVAL_S: Final = 0.5
# Size of a batch, and the number of waiting requests that starts a write at once. To build the rows
# blocks the event loop for half a millisecond; tokens should not be delayed for longer.
BATCH_RECORDS: Final = 100
MAX_MODELS: Final = 1024  # model names that are counted: a node could invent any number of names

# Tries to read the month's sums without a write of this process in between. A read takes
# milliseconds, and writes happen every half second.
CATCH_UP_TRIES: Final = 5

# Ids in one query, below the number of parameters that SQLite and PostgreSQL take.
IDS_ASKED: Final = 500

_MONTH: Final = (
    "SELECT key_id, model, sum(prompt_tokens + completion_tokens) AS tokens FROM usage_rollups"
    " WHERE span = 'day' AND start >= $1 AND start < $2 GROUP BY key_id, model"
)

log = logging.getLogger("wai.usage")


class UsageRecorder:
    """The relay's `Recorder`. Make it with `load`, end it with `close`. Belongs to one event loop.

    `retention_s`: returns how long raw rows are kept, in seconds; called whenever old rows are
    deleted, so that the setting can change. `folder`: the data folder for the spill file; None: no
    spill file. `wall_clock`, `clock`: seconds since 1970, and monotonic seconds. `writer`: what
    tells this relay's batches from those of others in a shared database. `keeps_house`: returns
    whether this relay deletes old usage.
    """

    def __init__(
        self,
        store: Store,
        retention_s: Callable[[], float],
        folder: Path | None = None,
        *,
        writer: str = "",
        keeps_house: Callable[[], bool] = lambda: True,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        call_later: CallLater | None = None,
    ) -> None:
        self.relay = ""
        """The id of this relay, which each request names; "" where it is alone."""
        self._store = store
        self._wall_clock = wall_clock
        self._call_later = call_later or _call_later
        self._folder = folder
        self._spill_file = SpillFile.of_process(folder) if folder is not None else None
        self._delivery = Delivery(store, self._spill_file, self._on_written, self._call_later)
        self._writer = writer
        self._pruning = Pruning(
            *(store, retention_s, clock(), wall_clock()), writer=writer, ours=keeps_house
        )
        self._clock = clock
        self._pending: list[RequestRecord] = []
        self._corrections: list[Counted] = []
        self._models: set[str] = set()
        self.months = MonthTokens(wall_clock())
        """The tokens of each key in this month."""
        self._written = MonthTokens(wall_clock())  # the part that this process has stored
        self._batches_written = 0
        # The part that other processes have stored: tokens by month and key.
        self._others: dict[int, dict[str, int]] = {}
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
        writer: str = "",
        keeps_house: Callable[[], bool] = lambda: True,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        call_later: CallLater | None = None,
    ) -> UsageRecorder:
        """Make a recorder that has the sums of this month, spill files of killed relays included.

        The arguments are those of the class. Raises `StoreError`.
        """
        recorder = cls(
            *(store, retention_s, folder),
            writer=writer,
            keeps_house=keeps_house,
            wall_clock=wall_clock,
            clock=clock,
            call_later=call_later,
        )
        begin = recorder.months.begin(wall_clock())
        rows = await store.read(_MONTH, begin, month_of(begin)[1])
        recorder._add_others(begin, rows)
        for row in rows:
            recorder._add_model(row["model"])
        recorder.months.on_unknown = lambda begin: recorder._in_background()
        if recorder._spill_file is not None:
            try:
                await asyncio.to_thread(recorder._spill_file.prepare)
            except OSError as error:
                log.warning("no disk space is reserved for usage that cannot be written: %s", error)
        await recorder._adopt()
        recorder._tick_timer = recorder._call_later(PRUNE_INTERVAL_S, recorder._on_tick)
        return recorder

    @property
    def state(self) -> UsageState:
        """How many requests wait or are lost, and whether the database fails."""
        waiting = len(self._pending) + self._delivery.unwritten
        return UsageState(waiting, self._delivery.lost, behind=self._delivery.failing)

    def tokens_of_month(self, key_id: str) -> tuple[int, int]:
        """What `key_id` took in this month through this process: the tokens that are not stored yet
        (those that are lost too), and those that are."""
        now = self._wall_clock()
        others = self._others.get(self.months.begin(now), {}).get(key_id, 0)
        written = self._written.of(key_id, now)
        return max(self.months.of(key_id, now) - others - written, 0), written

    # -- the hot path
    def finish(self, record: RequestRecord) -> None:
        """See `Recorder`."""
        record.handed_over = True
        record.relay = self.relay
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

    # -- writing
    def flush(self) -> None:
        """Queue the recorded requests for writing, in batches of at most `BATCH_RECORDS`."""
        counted = [Counted(each, self._model_of(each), each.tokens) for each in self._pending]
        counted += self._corrections
        self._pending.clear()
        self._corrections.clear()
        for batch in batches_of(counted, BATCH_RECORDS, self._writer):
            self._delivery.add(batch)

    async def settle(self) -> None:
        """Wait until all finished requests are written or writing has failed."""
        self.flush()
        await self._delivery.wait()

    async def catch_up(self) -> None:
        """Add to the month's sums what other processes have stored since the last call.

        Raises `StoreError`.
        """
        for _ in range(CATCH_UP_TRIES):
            await self.settle()
            begin = self.months.begin(self._wall_clock())
            before = self._batches_written
            rows = await self._store.read(_MONTH, begin, month_of(begin)[1])
            if self._delivery.idle and self._batches_written == before:
                self._add_others(begin, rows)
                return

    def _add_others(self, begin: int, rows: list[Row]) -> None:
        """Add the tokens that other processes have stored to the month that began at `begin`.

        `rows`: the stored sums of that month, including those of this process.
        """
        stored: Counter[str] = Counter()
        for row in rows:
            stored[row["key_id"]] += int(row["tokens"])
        ours = self._written.all(begin)
        counted_before = self._others.setdefault(begin, {})
        for key_id, tokens in stored.items():
            others = tokens - ours.get(key_id, 0)
            self.months.add(key_id, begin, others - counted_before.get(key_id, 0))
            counted_before[key_id] = others
        self.months.know(begin)

    async def close(self) -> None:
        """Write the rest, or leave it in the spill file. Call it before the store's `close`."""
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
            self._written.add(each.record.key_id, each.record.started_at, each.added_tokens)

    def _model_of(self, record: RequestRecord) -> str:
        """Return the model name under which a request is counted, "" for an unknown one.

        A name is known once a request for it was sent to a node. So callers cannot add names by
        requesting models that do not exist.
        """
        if record.attempts:
            self._add_model(record.model)
        return record.model if record.model in self._models else ""

    def _add_model(self, model: str) -> None:
        if len(self._models) < MAX_MODELS:
            self._models.add(model)

    # -- periodically
    def _on_tick(self) -> None:
        self._pruning.tick(self._clock(), self._wall_clock(), spilled=self._delivery.spilled)
        self._in_background()
        self._tick_timer = self._call_later(PRUNE_INTERVAL_S, self._on_tick)

    def _in_background(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._adopt_and_catch_up())

    async def _adopt_and_catch_up(self) -> None:
        """Adopt the spill files of processes that have ended, and load the sums of a new month."""
        try:
            await self._adopt()
            if not self.months.knows(self._wall_clock()):
                await self.catch_up()
        except StoreError as error:
            log.warning("the usage stored by other relays could not be read: %s", error)

    async def _adopt(self) -> None:
        """Count and write the batches in the spill files of processes that have ended."""
        if self._folder is None:
            return
        found: list[SpillFile] = []
        try:
            found = await asyncio.to_thread(SpillFile.take_abandoned, self._folder)
            while found:
                await self._take_over(found[-1])
                found.pop()
        except OSError as error:
            log.error("the unwritten usage of a relay that has ended cannot be read: %s", error)
        finally:
            for spill_file in found:  # the next call tries again
                spill_file.close()

    async def _take_over(self, spill_file: SpillFile) -> None:
        stored: set[str] = set()
        ids = await asyncio.to_thread(_ids, spill_file)
        for start in range(0, len(ids), IDS_ASKED):
            asked = ids[start : start + IDS_ASKED]
            places = ", ".join(f"${n}" for n in range(1, len(asked) + 1))
            rows = await self._store.read(
                f"SELECT id FROM usage_batches WHERE id IN ({places})",  # noqa: S608 - only numbers
                *asked,
            )
            stored.update(row["id"] for row in rows)
        requests, tokens, stored_ids = await asyncio.to_thread(_sums, spill_file, stored)
        for (key_id, begin), more in tokens.items():
            self.months.add(key_id, begin, more)
        if requests:
            log.warning(
                "the usage of %d requests was left by a relay that has ended; it is written now",
                requests,
            )
        self._delivery.adopt(spill_file, requests, stored_ids)


def _ids(spill_file: SpillFile) -> list[str]:
    """Return the ids of the batches in `spill_file`."""
    ids = []
    for line in spill_file.lines():
        try:
            ids.append(read_batch(line).id)
        except StoreError:
            continue  # the delivery will log it
    return ids


def _sums(
    spill_file: SpillFile, stored: set[str]
) -> tuple[int, Counter[tuple[str, int]], list[str]]:
    """Sum up the batches in `spill_file` that are not in `stored`.

    Returns the number of their requests, their tokens by key and month, and the ids of the batches
    that are stored already.
    """
    requests, tokens, stored_ids = 0, Counter[tuple[str, int]](), list[str]()
    for line in spill_file.lines():
        try:
            batch = read_batch(line)
        except StoreError:
            continue  # the delivery will log it
        if batch.id in stored:
            stored_ids.append(batch.id)
            continue
        requests += batch.requests
        for each in batch.counted:
            if each.record.key_id:
                begin = month_of(each.record.started_at)[0]
                tokens[each.record.key_id, begin] += each.added_tokens
    return requests, tokens, stored_ids


def _call_later(delay_s: float, call: Callable[[], None]) -> Timer:
    return asyncio.get_running_loop().call_later(delay_s, call)
