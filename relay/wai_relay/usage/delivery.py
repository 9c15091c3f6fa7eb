"""Write batches of usage to the database, and keep those that are not confirmed to be stored.

One task writes one batch after another and waits for each. If the database accepts none for a while
(another process has locked it, the disk is full), the waiting batches are moved to a spill file,
and from there to the database when it works again, even after a restart. If the file has no room
either, batches stay in memory, up to a bound. Beyond it, usage is lost, and the loss is counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from wai_protocol.errors import StoreError
from wai_relay.storage import ConflictError, RefusedError, Store

from .batches import Batch, read_batch
from .spill_file import SpillFile

# Time without a commit after which batches are moved to the file: longer than a normal commit, and
# as long as the usage that a crash may lose anyway.
SPILL_AFTER_S: Final = 1.0
RETRY_S: Final = 1.0
# Requests kept in memory if neither database nor file accepts them: 20 MB.
MAX_HELD: Final = 20_000
# How long `close` waits for the database before it leaves the rest in the file.
CLOSE_S: Final = 3.0

log = logging.getLogger("wai.usage")

CallLater = Callable[[float, Callable[[], None]], Any]


class Timer(Protocol):
    """The result of `call_later`."""

    def cancel(self) -> None:
        """Cancel the call."""


class Delivery:
    """Writes batches as the module describes. Belongs to one event loop; end it with `close`.

    `spill_file`: where batches wait; None: in memory only. `written`: called with each batch that
    is stored in the database. `call_later`: schedules a call after some seconds.
    """

    def __init__(
        self,
        store: Store,
        spill_file: SpillFile | None,
        written: Callable[[Batch], None],
        call_later: CallLater,
    ) -> None:
        self.unwritten = 0
        """Number of requests that are not confirmed to be in the database."""
        self.lost = 0
        """Number of requests whose usage is lost."""
        self._store = store
        self._spill_file = spill_file
        self._written = written
        self._call_later = call_later
        self._files: deque[SpillFile] = deque(() if spill_file is None else (spill_file,))
        self._waiting: deque[Batch] = deque()  # batches in memory
        self._current: Batch | None = None  # the batch that is being written to the database
        self._stored_ids: set[str] = set()  # ids of batches in a file that are stored already
        self._task: asyncio.Task[None] | None = None
        self._retry: Timer | None = None
        self._failing = False
        self._spilling = False
        self._spill_failing = False
        self._closing = False

    @property
    def failing(self) -> bool:
        """Whether the last write to the database failed or takes long."""
        return self._failing

    @property
    def idle(self) -> bool:
        """Whether nothing is being written now."""
        return self._task is None

    @property
    def spilled(self) -> bool:
        """Whether a file holds batches."""
        return any(not spill_file.empty for spill_file in self._files)

    def add(self, batch: Batch) -> None:
        """Queue `batch`."""
        self.unwritten += batch.requests
        self._waiting.append(batch)
        self._drop_excess()
        if self._retry is None:
            self.start()

    def adopt(self, spill_file: SpillFile, requests: int, stored_ids: Iterable[str]) -> None:
        """Also write the batches in the spill file of a process that has ended.

        `requests`: how many requests in it are not stored. `stored_ids`: the batches that are.
        """
        self.unwritten += requests
        self._stored_ids.update(stored_ids)
        self._files.appendleft(spill_file)
        self.start()

    def start(self) -> None:
        """Start to write now."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def wait(self) -> None:
        """Wait until everything is written or writing has failed."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def close(self) -> None:
        """Write for up to `CLOSE_S` seconds, and leave the rest in the file."""
        self._closing = True
        if self._waiting or self.spilled:
            self.start()
        task = self._task
        if task is not None:
            await asyncio.wait((task,), timeout=CLOSE_S)
            while self._spilling:  # the thread that writes the file cannot be interrupted
                await asyncio.wait((task,), timeout=SPILL_AFTER_S)
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
        if self._retry is not None:
            self._retry.cancel()
        await self._spill()
        left = sum(batch.requests for batch in self._waiting)
        self._count_lost(left, "neither the database nor the file could be written")
        self._waiting.clear()
        for spill_file in self._files:
            await asyncio.to_thread(spill_file.close)

    async def _run(self) -> None:
        try:
            while await self._write_next():
                pass
        except OSError as error:
            self._note_failure(f"its file cannot be read: {error}")
        except Exception:
            log.exception("writing usage failed")
        finally:
            self._task = None
        if (self._waiting or self.spilled) and not self._closing:
            self._retry = self._call_later(RETRY_S, self._retry_now)
        elif self._failing and not self.unwritten:
            self._failing = self._spill_failing = False
            log.warning("usage is written again, and all that had waited is written")

    def _retry_now(self) -> None:
        self._retry = None
        self.start()

    async def _write_next(self) -> bool:
        """Write one batch, from a file first; return False if there is none or it fails."""
        for spill_file in list(self._files):
            line = None if spill_file.empty else await asyncio.to_thread(spill_file.first)
            if line is not None:
                return await self._write_line(spill_file, line)
            if spill_file is not self._spill_file:
                self._files.remove(spill_file)
                await asyncio.to_thread(spill_file.close)
        if not self._waiting:
            return False
        batch = self._waiting[0]
        self._current = batch
        try:
            if not await self._write(batch):
                await self._spill()
                return False
        finally:
            self._current = None
        if self._waiting and self._waiting[0] is batch:
            self._waiting.popleft()
        else:  # it was moved to the file meanwhile
            self._stored_ids.add(batch.id)
        return True

    async def _write_line(self, spill_file: SpillFile, line: bytes) -> bool:
        try:
            batch = read_batch(line)
        except StoreError as error:
            log.error("%s: %s", spill_file.path, error)
        else:
            if batch.id in self._stored_ids:
                self._stored_ids.discard(batch.id)
            elif not await self._write(batch):
                await self._spill()
                return False
        await asyncio.to_thread(spill_file.drop_first, line)
        return True

    async def _write(self, batch: Batch) -> bool:
        """Write `batch`; return whether it is done with: stored, or lost because it was refused."""
        writing = asyncio.ensure_future(self._store.write(*batch.writes))
        try:
            while not writing.done():
                await asyncio.wait((writing,), timeout=SPILL_AFTER_S)
                if not writing.done():
                    self._note_failure("the database does not complete a write")
                    await self._spill()
            writing.result()
        except ConflictError:
            pass  # it was stored by an earlier try that was not confirmed
        except RefusedError as error:
            if len(batch.counted) > 1:
                return await self._write_alone(batch)
            self.unwritten -= batch.requests
            self._count_lost(batch.requests, str(error))
            return True
        except StoreError as error:
            self._note_failure(str(error))
            return False
        finally:
            writing.cancel()  # its result is not needed any more
        self.unwritten -= batch.requests
        self._written(batch)
        return True

    async def _write_alone(self, batch: Batch) -> bool:
        """Write each request of a batch as a batch of its own, so that only a refused one is lost.

        Their ids are the same at each try.
        """
        parts = [Batch([each], f"{batch.id}.{n}") for n, each in enumerate(batch.counted)]
        for part in parts:
            if part.id not in self._stored_ids:
                if not await self._write(part):
                    return False
                self._stored_ids.add(part.id)
        self._stored_ids.difference_update(part.id for part in parts)
        return True

    async def _spill(self) -> None:
        """Move the batches in memory to the file."""
        batches, spill_file = list(self._waiting), self._spill_file
        if not batches or spill_file is None or self._spilling:
            return
        self._spilling = True
        try:
            await asyncio.to_thread(lambda: spill_file.append([batch.line() for batch in batches]))
        except OSError as error:
            if not self._spill_failing:
                self._spill_failing = True
                log.error(
                    "usage cannot be written to %s either, and is kept in memory: %s",
                    spill_file.path,
                    error,
                )
        else:
            self._spill_failing = False
            for _ in batches:
                self._waiting.popleft()
        finally:
            self._spilling = False
            self._drop_excess()

    def _drop_excess(self) -> None:
        """Drop the oldest batches while writing fails and memory holds more than `MAX_HELD`."""
        if self._spilling or len(self._waiting) < 2:
            return
        held = sum(batch.requests for batch in self._waiting) if self._failing else 0
        oldest = int(self._waiting[0] is self._current)
        while held > MAX_HELD:
            dropped = self._waiting[oldest].requests
            del self._waiting[oldest]
            held -= dropped
            self.unwritten -= dropped
            self._count_lost(dropped, "too much of it waits in memory")

    def _note_failure(self, why: str) -> None:
        if not self._failing:
            self._failing = True
            log.error("usage cannot be written, and is kept until it can: %s", why)

    def _count_lost(self, requests: int, why: str) -> None:
        if requests:
            if not self.lost or self._closing:
                log.error("the usage of %d requests is lost: %s", requests, why)
            self.lost += requests
