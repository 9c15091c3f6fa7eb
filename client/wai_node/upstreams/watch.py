"""Keeps the board true: polls each upstream, looks for new ones, and tells when the status changed.

A shell around `Board`, which holds the rules. Polls are regular and quiet; a stream of ours that
starts or ends changes the counts at once, and has its upstream asked soon.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from wai_protocol.errors import Fault, WaiError
from wai_protocol.status import NodeStatus

from .board import Board
from .detect import UnidentifiedUpstream
from .tally import Counters, Look, OpenStream, Report, Spent
from .upstream import Upstream

POLL_S: Final = 2.0  # how old the counts of other people's requests may be
HURRIED_POLL_S: Final = 0.25  # the least between two polls, however many streams start and end
DISCOVER_S: Final = 10.0  # how long a server started after the node goes unnoticed
# An answer that was over when a server counted has come to its end here after so long: the way on
# this machine, and its turn on a busy one.
NEWS_S: Final = 0.05
FORGET_S: Final = 600.0  # a server that is started anew may load a large model for minutes
PUBLISH_S: Final = 0.1  # the least between two statuses: 200 streams a second make 10, not 400

_log = logging.getLogger("wai.node")

Discover = Callable[[frozenset[int]], Awaitable[list[Upstream]]]


class Watch:
    """Polls the upstreams on `board` while `run` runs, and owns those that it finds.

    `given` upstreams stay whatever happens. `discover` gets the ports known already and returns new
    upstreams. One that was discovered and goes down is looked for anew, since its port may return
    as another kind, and is forgotten after `FORGET_S`. `on_change` gets every new status, the first
    one too, at most ten a second.
    """

    def __init__(
        self,
        board: Board,
        on_change: Callable[[NodeStatus], None],
        *,
        given: list[Upstream] | None = None,
        discover: Discover | None = None,
        version: str = "",
        detail: dict[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.board = board
        self._clock = clock
        self._on_change = on_change
        self._discover = discover
        self._version = version
        self._detail = detail or {}
        self._draining = False
        self._published: NodeStatus | None = None
        self._dirty = asyncio.Event()
        self._given = set(given or [])
        self._group: asyncio.TaskGroup | None = None
        self._hurry: dict[Upstream, asyncio.Event] = {}
        self._polls: dict[Upstream, asyncio.Task[None]] = {}
        for upstream in given or []:
            board.add(upstream)

    # -- what the forwarder tells

    def started(self, upstream: Upstream, model: str, stream: OpenStream) -> None:
        """A stream of ours was opened at `upstream`."""
        self.board.started(upstream, model, stream)
        self._touched(upstream)

    def ended(self, upstream: Upstream, model: str, stream: OpenStream, spent: Spent) -> None:
        """A stream of ours at `upstream` is over."""
        self.board.ended(upstream, model, stream, spent)
        self._touched(upstream)

    def left(self, upstream: Upstream, model: str, stream: OpenStream, report: Report) -> None:
        """A stream of ours at `upstream` was given up; `report` may hear later what it took."""
        self.board.left(upstream, model, stream, self._clock(), report)
        self._touched(upstream)

    def measured(
        self, upstream: Upstream, model: str, prefill_tps: float | None, decode_tps: float | None
    ) -> None:
        """See `Board.measured`."""
        self.board.measured(upstream, model, prefill_tps, decode_tps)
        self._dirty.set()

    # -- what whoever manages servers tells

    def add(self, upstream: Upstream) -> None:
        """Serve one more upstream; it stays until `remove`, whatever happens to it."""
        self._given.add(upstream)
        self.board.add(upstream)
        if self._group is not None:
            self._poll_from_now(self._group, upstream)
            self.touch(upstream)

    async def remove(self, upstream: Upstream) -> None:
        """Serve it no more. Streams that are open there go on."""
        self._given.discard(upstream)
        task = self._polls.get(upstream)
        await self._forget(upstream)
        if task is not None:
            task.cancel()

    def touch(self, upstream: Upstream) -> None:
        """Something changed there: ask it soon."""
        self._touched(upstream)

    def tell(self, name: str, value: Any) -> None:
        """Show `value` in the status' detail from now on."""
        if self._detail.get(name) != value:
            self._detail = {**self._detail, name: value}
            self._dirty.set()

    def drain(self) -> None:
        """From now on say that this node takes no new streams."""
        self._draining = True
        self._dirty.set()

    # -- the work

    async def run(self) -> None:
        """Poll until cancelled; then every upstream is closed."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for upstream in self.board.upstreams:
                    self._poll_from_now(group, upstream)
                if self._discover is not None:
                    await self._look_around(group, self._discover)
                await self._first_polls()
                if self._discover is not None:
                    group.create_task(self._discover_for_ever(group, self._discover))
                await self._publish_for_ever()
        finally:
            for upstream in self.board.upstreams:
                self.board.remove(upstream)
                await upstream.aclose()

    def _touched(self, upstream: Upstream) -> None:
        self._dirty.set()
        if upstream in self._hurry:
            self._hurry[upstream].set()

    def _poll_from_now(self, group: asyncio.TaskGroup, upstream: Upstream) -> None:
        self._hurry[upstream] = asyncio.Event()
        self._polls[upstream] = group.create_task(self._poll_for_ever(upstream))

    async def _first_polls(self) -> None:
        """Each upstream's first answer, so that the first status is not an empty one."""
        await asyncio.gather(*(self._poll(upstream) for upstream in self.board.upstreams))
        self._dirty.set()

    async def _publish_for_ever(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            status = self.board.status(
                version=self._version, draining=self._draining, detail=self._detail
            )
            if status != self._published:
                self._published = status
                self._on_change(status)
            await asyncio.sleep(PUBLISH_S)

    async def _poll_for_ever(self, upstream: Upstream) -> None:
        hurry = self._hurry[upstream]
        up_at = self._clock()
        while True:
            await asyncio.sleep(HURRIED_POLL_S)
            try:
                async with asyncio.timeout(POLL_S - HURRIED_POLL_S):
                    await hurry.wait()
            except TimeoutError:
                pass  # nobody was in a hurry
            hurry.clear()
            if isinstance(upstream, UnidentifiedUpstream) and await self._identify(upstream):
                return
            up = await self._poll(upstream)
            if up:
                up_at = self._clock()
                continue
            lost = upstream not in self._given and not self.board.busy(upstream)
            if lost and self._clock() - up_at >= FORGET_S:
                await self._forget(upstream)
                return

    async def _poll(self, upstream: Upstream) -> bool:
        """Ask once; returns False when the upstream counts as down."""
        down = False
        look = self.board.look(upstream)
        try:
            upstream.check()
            probe = await upstream.probe()
        except WaiError as error:
            timed_out = error.fault is Fault.UPSTREAM_TIMEOUT
            down = self.board.failed(upstream, str(error), timed_out=timed_out)
            _log.debug("%s: %s", upstream.name, error)
        else:
            self.board.probed(upstream, probe)
            self._dirty.set()
            if look is not None and probe.counters is not None:
                await self._count(upstream, look, probe.counters)
        self._dirty.set()
        return not down

    async def _count(self, upstream: Upstream, look: Look, counters: Counters) -> None:
        """Hold what it counted against our streams; ask again soon while that does not add up."""
        if not self.board.settled(upstream):
            await asyncio.sleep(NEWS_S)
        if self.board.counted(upstream, look, counters, self._clock()):
            self._touched(upstream)

    async def _forget(self, upstream: Upstream) -> None:
        _log.info("%s is gone", upstream.name)
        self.board.remove(upstream)
        self._hurry.pop(upstream, None)
        self._polls.pop(upstream, None)
        self._dirty.set()
        await upstream.aclose()

    async def _identify(self, unknown: UnidentifiedUpstream) -> bool:
        """See whether it is known by now what a person named; then that is served instead."""
        found = None if self.board.busy(unknown) else await unknown.identified()
        if found is None:
            return False
        _log.info("%s is %s", unknown.name, found.name)
        self._given.discard(unknown)
        await self._forget(unknown)
        self.add(found)
        return True

    async def _replace(self, found: Upstream) -> None:
        """What was down at the port where something answers now is not coming back."""
        for old in self.board.upstreams:
            if old.origin.port == found.origin.port and not self.board.up(old):
                poll = self._polls.get(old)
                await self._forget(old)
                if poll is not None:
                    poll.cancel()

    async def _discover_for_ever(self, group: asyncio.TaskGroup, discover: Discover) -> None:
        while True:
            await asyncio.sleep(DISCOVER_S)
            for upstream in await self._look_around(group, discover):
                await self._poll(upstream)

    async def _look_around(self, group: asyncio.TaskGroup, discover: Discover) -> list[Upstream]:
        there = [u for u in self.board.upstreams if u in self._given or self.board.up(u)]
        found = await discover(frozenset(upstream.origin.port for upstream in there))
        for upstream in found:
            _log.info("found %s", upstream.name)
            await self._replace(upstream)
            self.board.add(upstream)
            self._poll_from_now(group, upstream)
        return found
