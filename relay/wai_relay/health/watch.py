"""Looks every few seconds for what is wrong, and tells of it: `/metrics` and the notifications."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from wai_api.health import KINDS, ProblemView

from .health import Health

LOOK_S: Final = 5.0
"""A problem is to be known within 15 s, and a look takes milliseconds."""

_log = logging.getLogger("wai.health")


class HealthWatch:
    """Keeps `now`, what was wrong at the last look. `start` it; `close` it; belongs to one loop.

    `before`: called before each look, to have others find out what they tell. `told`: gets what
    each look found.
    """

    def __init__(
        self,
        health: Health,
        *,
        before: Iterable[Callable[[], None]] = (),
        told: Callable[[tuple[ProblemView, ...]], None] | None = None,
    ) -> None:
        self.now: tuple[ProblemView, ...] = ()
        self._health = health
        self._before = tuple(before)
        self._told = told
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
        self._health.condition.folder.close()

    def counts(self) -> dict[str, int]:
        """How many problems of each kind there are, for all kinds."""
        counted = Counter(one.kind for one in self.now)
        return {kind: counted[kind] for kind in KINDS}

    async def look(self) -> None:
        """Look once."""
        for ask in self._before:
            ask()
        self._health.clock_watch.look()
        await self._health.condition.folder.look()
        before, self.now = self.now, self._health.problems()
        _write_down(before, self.now)
        if self._told is not None:
            self._told(self.now)

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # a bug in a look must not end all later ones
                _log.exception("looking for problems failed")
            await asyncio.sleep(LOOK_S)


def _write_down(before: tuple[ProblemView, ...], now: tuple[ProblemView, ...]) -> None:
    """Say in the log what has begun and what is over."""
    known, found = {one.id: one for one in before}, {one.id: one for one in now}
    for name, one in found.items():
        if name not in known:
            _log.warning("problem: %s: %s", one.subject, one.text)
    for name, one in known.items():
        if name not in found:
            _log.info("over: %s: %s", one.subject, one.text)
