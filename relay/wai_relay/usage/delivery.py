"""Sees batches of usage to the database: what is not confirmed to be there is kept.

One task writes one batch after the other and waits for each. When the database takes none for a
moment (another process holds it, the disk is full), what waits goes to a file beside it, and from
there to the database once that works again, also after a restart. Where the file has no room
either, memory keeps it up to a bound; only beyond that is usage lost, and counted as that.
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
from .side_file import SideFile

# Longer than a healthy commit, and no longer than what a crash may cost in any case.
SPILL_AFTER_S: Final = 1.0
RETRY_S: Final = 1.0
# Requests kept in memory where neither database nor file takes them: 20 MB.
MAX_HELD: Final = 20_000
# An orderly stop waits so long for the database before it leaves the rest to the file.
CLOSE_S: Final = 3.0

log = logging.getLogger("wai.usage")

CallLater = Callable[[float, Callable[[], None]], Any]


class Timer(Protocol):
    """What `call_later` gives."""

    def cancel(self) -> None:
        """Never call back."""


class Delivery:
    """See the module. `written` is called with each batch that is in the database. Belongs to one
    loop; end it with `close`. Without a `side` file only memory keeps what waits."""

    def __init__(
        self,
        store: Store,
        side: SideFile | None,
        written: Callable[[Batch], None],
        call_later: CallLater,
    ) -> None:
        self.unwritten = 0
        """Requests that are not known to be in the database."""
        self.lost = 0
        """Requests that could not be kept."""
        self._store = store
        self._side = side
        self._written = written
        self._call_later = call_later
        self._files: deque[SideFile] = deque(() if side is None else (side,))
        self._waiting: deque[Batch] = deque()  # in memory
        self._current: Batch | None = None  # on its way to the database
        self._settled: set[str] = set()  # batches in a file that are in the database already
        self._task: asyncio.Task[None] | None = None
        self._retry: Timer | None = None
        self._failing = False
        self._spilling = False
        self._side_failing = False
        self._closing = False

    @property
    def failing(self) -> bool:
        """Whether the database took nothing when it was last asked."""
        return self._failing

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way to the database in this moment."""
        return self._task is None

    @property
    def spilled(self) -> bool:
        """Whether anything waits in a file."""
        return any(not side.empty for side in self._files)

    def add(self, batch: Batch) -> None:
        """Write `batch` soon."""
        self.unwritten += batch.requests
        self._waiting.append(batch)
        self._bound()
        if self._retry is None:
            self.start()

    def adopt(self, side: SideFile, requests: int, settled: Iterable[str]) -> None:
        """Write what a process that has ended left in `side`, of which `settled` is written."""
        self.unwritten += requests
        self._settled.update(settled)
        self._files.appendleft(side)
        self.start()

    def start(self) -> None:
        """Try now."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def wait(self) -> None:
        """Return when all is written, or could not be."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def close(self) -> None:
        """Write what can be written, and leave the rest to the file."""
        self._closing = True
        if self._waiting or self.spilled:
            self.start()
        task = self._task
        if task is not None:
            await asyncio.wait((task,), timeout=CLOSE_S)
            while self._spilling:  # the file's thread can't be stopped in the middle
                await asyncio.wait((task,), timeout=SPILL_AFTER_S)
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
        if self._retry is not None:
            self._retry.cancel()
        await self._spill()
        self._lose(sum(batch.requests for batch in self._waiting), "neither disk took it")
        self._waiting.clear()
        for side in self._files:
            await asyncio.to_thread(side.close)

    # -- inside
    async def _run(self) -> None:
        try:
            while await self._write_next():
                pass
        except OSError as error:
            self._trouble(f"its file cannot be read: {error}")
        except Exception:
            log.exception("writing usage failed")
        finally:
            self._task = None
        if (self._waiting or self.spilled) and not self._closing:
            self._retry = self._call_later(RETRY_S, self._again)
        elif self._failing and not self.unwritten:
            self._failing = self._side_failing = False
            log.warning("usage is written again, and what had waited is too")

    def _again(self) -> None:
        self._retry = None
        self.start()

    async def _write_next(self) -> bool:
        """Write one batch, those in files first; False if there is none, or it can't be written."""
        for side in list(self._files):
            line = None if side.empty else await asyncio.to_thread(side.first)
            if line is not None:
                return await self._write_line(side, line)
            if side is not self._side:
                self._files.remove(side)
                await asyncio.to_thread(side.close)
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
        else:  # it went to the file meanwhile
            self._settled.add(batch.id)
        return True

    async def _write_line(self, side: SideFile, line: bytes) -> bool:
        try:
            batch = read_batch(line)
        except StoreError as error:
            log.error("%s: %s", side.path, error)
        else:
            if batch.id in self._settled:
                self._settled.discard(batch.id)
            elif not await self._write(batch):
                await self._spill()
                return False
        await asyncio.to_thread(side.take, line)
        return True

    async def _write(self, batch: Batch) -> bool:
        """Whether `batch` is over: in the database, or never to be."""
        writing = asyncio.ensure_future(self._store.write(*batch.writes))
        try:
            while not writing.done():
                await asyncio.wait((writing,), timeout=SPILL_AFTER_S)
                if not writing.done():
                    self._trouble("the database takes nothing for a while")
                    await self._spill()
            writing.result()
        except ConflictError:
            pass  # it was there already: only the news of that was lost
        except RefusedError as error:
            if len(batch.counted) > 1:
                return await self._write_alone(batch)
            self.unwritten -= batch.requests
            self._lose(batch.requests, str(error))
            return True
        except StoreError as error:
            self._trouble(str(error))
            return False
        finally:
            writing.cancel()  # no news of it is wanted any more
        self.unwritten -= batch.requests
        self._written(batch)
        return True

    async def _write_alone(self, batch: Batch) -> bool:
        """Write each of a batch by itself, so that only the one is lost which can't be written.
        Their ids are the same at another try."""
        parts = [Batch([each], f"{batch.id}.{n}") for n, each in enumerate(batch.counted)]
        for part in parts:
            if part.id not in self._settled:
                if not await self._write(part):
                    return False
                self._settled.add(part.id)
        self._settled.difference_update(part.id for part in parts)
        return True

    async def _spill(self) -> None:
        """Put what waits in memory into the file."""
        batches, side = list(self._waiting), self._side
        if not batches or side is None or self._spilling:
            return
        self._spilling = True
        try:
            await asyncio.to_thread(lambda: side.append([batch.line() for batch in batches]))
        except OSError as error:
            if not self._side_failing:
                self._side_failing = True
                log.error("%s takes no usage either: %s; memory keeps it", side.path, error)
        else:
            self._side_failing = False
            for _ in batches:
                self._waiting.popleft()
        finally:
            self._spilling = False
            self._bound()

    def _bound(self) -> None:
        """Give up the oldest of what memory can't hold."""
        if self._spilling or len(self._waiting) < 2:
            return
        held = sum(batch.requests for batch in self._waiting) if self._failing else 0
        oldest = int(self._waiting[0] is self._current)
        while held > MAX_HELD:
            dropped = self._waiting[oldest].requests
            del self._waiting[oldest]
            held -= dropped
            self.unwritten -= dropped
            self._lose(dropped, "memory holds no more of it")

    def _trouble(self, why: str) -> None:
        if not self._failing:
            self._failing = True
            log.error("usage is not written, and kept until it can be: %s", why)

    def _lose(self, requests: int, why: str) -> None:
        if requests:
            if not self.lost or self._closing:
                log.error("the usage of %d requests is lost: %s", requests, why)
            self.lost += requests
