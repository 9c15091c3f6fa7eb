"""Run the parts of a node side by side, and start again each one that fails.

A part is a coroutine function with a name: a tunnel, an upstream's watcher, discovery. Parts share
nothing but the loop: what one raises is logged with its name, the part is marked down, and it is
started again after a wait that grows. The other parts go on. A part that returns is done.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final

from wai_protocol.errors import WaiError

FIRST_WAIT_S: Final = 0.5
"""Longest wait before the first restart: most faults are of one moment."""

LONGEST_WAIT_S: Final = 30.0
"""Longest wait of all: a part that always fails is started two to four times a minute."""

STEADY_S: Final = 60.0
"""A part that ran this long before it failed is restarted as after its first failure."""

RECOVERED_S: Final = 5.0
"""How long a restarted part has to run until it no longer counts as down."""

MAX_REASON_CHARS: Final = 200
"""Of the reason that STATUS and `wai doctor` show; the log has the whole of it."""

Run = Callable[[], Coroutine[Any, Any, None]]

_log = logging.getLogger("wai.node")


class RestartPolicy:
    """How long one part waits between a failure and its next start. It is told the time.

    The bound doubles from `FIRST_WAIT_S` to `LONGEST_WAIT_S`. The wait is between half of it and
    all of it, by `random_share` (numbers in [0, 1)), so that parts with the same cause of failure
    do not restart in step, and none restarts at once.
    """

    def __init__(self, random_share: Callable[[], float] = random.random) -> None:
        self._random_share = random_share
        self._failures = 0
        self._started_at = 0.0

    def started(self, now: float) -> None:
        """The part was started."""
        self._started_at = now

    def failed(self, now: float) -> float:
        """The part failed. Returns the seconds to wait before the next start."""
        if now - self._started_at >= STEADY_S:
            self._failures = 0
        bound = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self._failures, 16))
        self._failures += 1
        return bound * (0.5 + 0.5 * self._random_share())


class Supervision:
    """The running parts. Belongs to one loop; `aclose` cancels all of them and waits for that.

    `on_change` gets the parts that are down, by name, with the reason, each time that changes.
    """

    def __init__(
        self,
        on_change: Callable[[dict[str, str]], None] = lambda down: None,
        *,
        random_share: Callable[[], float] = random.random,
    ) -> None:
        self._on_change = on_change
        self._random_share = random_share
        self._tasks: set[asyncio.Task[None]] = set()
        self._down: dict[str, str] = {}

    @property
    def down(self) -> dict[str, str]:
        """The parts that failed and have not run steadily since, by name, with the reason."""
        return dict(self._down)

    def start(self, name: str, run: Run) -> asyncio.Task[None]:
        """Run `run` until it returns, and again each time it raises. Cancel the task to stop it."""
        task = asyncio.get_running_loop().create_task(self.keep(name, run), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def aclose(self) -> None:
        """Cancel every part, and return once all have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def keep(self, name: str, run: Run) -> None:
        """Do what `start` does in the task that calls this, for owners of a task group."""
        policy = RestartPolicy(self._random_share)
        loop = asyncio.get_running_loop()
        try:
            while True:
                policy.started(loop.time())
                recovery = loop.call_later(RECOVERED_S, self._recovered, name)
                try:
                    failure = await _outcome(loop.create_task(run(), name=name))
                finally:
                    recovery.cancel()
                if failure is None:
                    return
                wait_s = policy.failed(loop.time())
                self._failed(name, failure, wait_s)
                await asyncio.sleep(wait_s)
        finally:
            self._recovered(name)  # what has ended is not down

    def _failed(self, name: str, error: BaseException, wait_s: float) -> None:
        reason = _reason(error)
        if self._down.get(name) == reason:
            _log.debug("the part %r failed again in the same way: %s", name, reason)
            return
        _log.error(
            "the part %r of this node failed; it is started again in %.1f s, and the others go on",
            name,
            wait_s,
            exc_info=error,
        )
        self._down[name] = reason
        self._on_change(self.down)

    def _recovered(self, name: str) -> None:
        if self._down.pop(name, None) is not None:
            self._on_change(self.down)


async def _outcome(part: asyncio.Task[None]) -> BaseException | None:
    """Wait until `part` ends; return its exception, None if it returned.

    It has a task of its own, so that a cancellation of who waits here is told from one of a task or
    future that the part itself waited for: task groups may take back the count by which
    `Task.cancelling` tells them apart.
    """
    try:
        await asyncio.wait((part,))
    except asyncio.CancelledError:
        part.cancel()
        await asyncio.wait((part,))
        if not part.cancelled() and (error := part.exception()) is not None:
            _log.error("the part %r failed while it was stopped", part.get_name(), exc_info=error)
        raise
    return asyncio.CancelledError() if part.cancelled() else part.exception()


def _reason(error: BaseException) -> str:
    """A `WaiError` speaks to people; the text of any other error may hold a peer's data."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    text = str(error) if isinstance(error, WaiError) else type(error).__name__
    return text[:MAX_REASON_CHARS]
