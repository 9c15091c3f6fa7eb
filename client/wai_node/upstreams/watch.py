"""Keeps the board true: polls each upstream, looks for new ones, and tells when the status changed.

A shell around `Board`, which holds the rules. Polls are regular and quiet; a stream of ours that
starts or ends changes the counts at once, and has its upstream asked soon. Each upstream's watcher,
the discovery and the publishing of STATUS are parts of their own under `Supervision`: what one of
them meets ends neither the others nor any stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import msgspec

from wai_node.supervision import Supervision
from wai_protocol.errors import Fault, WaiError
from wai_protocol.status import NodeStatus
from wai_protocol.surface import EXTRA_API

from .board import Board
from .detect import UnidentifiedUpstream
from .tally import Counters, Look, OpenStream, Report, TokensSpent
from .upstream import Probe, Upstream

POLL_S: Final = 2.0  # how old the counts of other people's requests may be
HURRIED_POLL_S: Final = 0.25  # the least between two polls, however many streams start and end
DISCOVER_S: Final = 10.0  # how long a server started after the node goes unnoticed
# An answer that was over when a server counted has come to its end here after so long: the way on
# this machine, and its turn on a busy one.
NEWS_S: Final = 0.05
FORGET_S: Final = 600.0  # a server that is started anew may load a large model for minutes
PUBLISH_S: Final = 0.1  # the least between two statuses: 200 streams a second make 10, not 400

FIRST_LOOK_S: Final = 5.0  # what one slow server may delay the first status of the others by
ROUTES_S: Final = 3600.0  # how long an upgrade that no poll has noticed may go unnoticed
PARTS_DOWN: Final = "parts_down"  # the entry of STATUS' detail that tells of failed parts

_log = logging.getLogger("wai.node")

Discover = Callable[[frozenset[int]], Awaitable[list[Upstream]]]


class _Polling(msgspec.Struct):
    """One upstream's watcher. `hurry`: it is to ask soon. `asked`: it has, once, or has failed.
    `routes_at`: when it was asked for its routes, None if it must be; `process`: who answered."""

    hurry: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    asked: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    routes_at: float | None = None
    process: str = ""


class Watch:
    """Polls the upstreams on `board` while `run` runs, and owns those that it finds.

    `given` upstreams stay whatever happens. `discover` gets the ports known already and returns new
    upstreams. One that was discovered and goes down is looked for anew, since its port may return
    as another kind, and is forgotten after `FORGET_S`. `on_change` gets every new status, the first
    one too, at most ten a second. `parts` runs what it does; its own if None.
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
        parts: Supervision | None = None,
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
        self._parts = parts or Supervision(partial(self.tell, PARTS_DOWN))
        self._running = False
        self._looked = asyncio.Event()
        self._polls: dict[Upstream, _Polling] = {}
        self._said_down: dict[Upstream, str] = {}  # why, as the log has it
        for upstream in given or []:
            board.add(upstream)

    # -- what the forwarder tells

    def started(self, upstream: Upstream, model: str, stream: OpenStream) -> None:
        """A stream of ours was opened at `upstream`."""
        self.board.started(upstream, model, stream)
        self._touched(upstream)

    def ended(self, upstream: Upstream, model: str, stream: OpenStream, spent: TokensSpent) -> None:
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
        if self._running:
            self._poll_from_now(upstream)

    async def remove(self, upstream: Upstream) -> None:
        """Serve it no more. Streams that are open there go on."""
        self._given.discard(upstream)
        await self._drop(upstream)

    def learned(self, upstream: Upstream, probe: Probe) -> None:
        """It is known without asking what `upstream` serves now. Tell it at once, since a caller
        may hear of it by other ways; it is asked soon all the same."""
        self.board.probed(upstream, probe)
        if self._published is not None:
            self._publish()
        self._touched(upstream)

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
            self._running = True
            for upstream in self.board.upstreams:
                self._poll_from_now(upstream)
            self._parts.start("discovery", self._look_for_ever)
            self._parts.start("status", self._publish_for_ever)
            await asyncio.Event().wait()
        finally:
            self._running = False
            await self._parts.aclose()
            for upstream in self.board.upstreams:
                self.board.remove(upstream)
                await upstream.aclose()

    def _touched(self, upstream: Upstream) -> None:
        self._dirty.set()
        if upstream in self._polls:
            self._polls[upstream].hurry.set()

    def _poll_from_now(self, upstream: Upstream) -> None:
        polling = self._polls[upstream] = _Polling()
        run = partial(self._watch_one, upstream, polling)
        polling.task = self._parts.start(f"upstream {upstream.name}", run)

    async def _publish_for_ever(self) -> None:
        with contextlib.suppress(TimeoutError):  # so that the first status is not an empty one
            async with asyncio.timeout(FIRST_LOOK_S):
                await self._looked.wait()
        while True:
            self._publish()
            await asyncio.sleep(PUBLISH_S)
            await self._dirty.wait()

    def _publish(self) -> None:
        self._dirty.clear()
        status = self.board.status(
            version=self._version, draining=self._draining, detail=self._detail
        )
        if status != self._published:
            self._on_change(status)
            self._published = status

    async def _watch_one(self, upstream: Upstream, polling: _Polling) -> None:
        """Poll it until it is forgotten. One that can't be watched takes no requests."""
        try:
            await self._poll_for_ever(upstream, polling)
        except Exception:
            reason = "this node failed to understand it; the node's log says why"
            self.board.failed(upstream, reason, timed_out=False)
            self._dirty.set()
            raise
        finally:
            polling.asked.set()

    async def _poll_for_ever(self, upstream: Upstream, polling: _Polling) -> None:
        up_at = self._clock()
        while True:
            if isinstance(upstream, UnidentifiedUpstream) and await self._identify(upstream):
                return
            up = await self._poll(upstream)
            polling.asked.set()
            if up:
                up_at = self._clock()
            elif self._is_lost(upstream) and self._clock() - up_at >= FORGET_S:
                await self._forget(upstream)
                return
            await _pause(polling.hurry)

    def _is_lost(self, upstream: Upstream) -> bool:
        """Whether nobody named it or uses it, so that it may be forgotten while it is down."""
        return upstream not in self._given and not self.board.busy(upstream)

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
            if down and upstream in self._polls:  # it may come back as a newer one
                self._polls[upstream].routes_at = None
            if down and self._said_down.get(upstream) != str(error):
                self._said_down[upstream] = str(error)
                _log.warning("%s is not used: %s", upstream.name, error)
        else:
            self.board.probed(upstream, probe)
            await self._find_routes(upstream, probe)
            if self._said_down.pop(upstream, None) is not None:
                _log.info("%s is used again", upstream.name)
            self._dirty.set()
            if look is not None and probe.counters is not None:
                await self._count(upstream, look, probe.counters)
        self._dirty.set()
        return not down

    async def _find_routes(self, upstream: Upstream, probe: Probe) -> None:
        """Ask for its routes where they may have changed: a newer version has others."""
        polling = self._polls.get(upstream)
        if polling is None or probe.asleep or not any(model.ready for model in probe.models):
            return
        now = self._clock()
        known = polling.routes_at is not None and now - polling.routes_at < ROUTES_S
        if known and polling.process == probe.process:
            return
        polling.routes_at, polling.process = now, probe.process
        try:
            asked = [route for route in self.board.routes if route.api != EXTRA_API]
            routes = await upstream.find_routes(asked)
        except WaiError as error:
            _log.debug("%s does not tell its routes: %s", upstream.name, error)
            routes = None
        self.board.found(upstream, routes)

    async def _count(self, upstream: Upstream, look: Look, counters: Counters) -> None:
        """Hold what it counted against our streams; ask again soon while that does not add up."""
        if not self.board.settled(upstream):
            await asyncio.sleep(NEWS_S)
        if self.board.counted(upstream, look, counters, self._clock()):
            self._touched(upstream)

    async def _drop(self, upstream: Upstream) -> None:
        """Stop its watcher, which is not the one that runs now, and forget it."""
        polling = self._polls.get(upstream)
        await self._forget(upstream)
        if polling is not None and polling.task is not None:
            polling.task.cancel()

    async def _forget(self, upstream: Upstream) -> None:
        _log.info("%s is gone", upstream.name)
        self.board.remove(upstream)
        self._polls.pop(upstream, None)
        self._said_down.pop(upstream, None)
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
                await self._drop(old)

    async def _look_for_ever(self) -> None:
        """Look for new upstreams, from time to time. The first status waits for the first look,
        until what it found was asked or it failed."""
        try:
            await self._look_around()
            await asyncio.gather(*(polling.asked.wait() for polling in self._polls.values()))
        finally:
            self._looked.set()
        while self._discover is not None:
            await asyncio.sleep(DISCOVER_S)
            await self._look_around()

    async def _look_around(self) -> None:
        if self._discover is None:
            return
        there = [u for u in self.board.upstreams if u in self._given or self.board.up(u)]
        for upstream in await self._discover(frozenset(u.origin.port for u in there)):
            _log.info("found %s", upstream.name)
            await self._replace(upstream)
            self.board.add(upstream)
            self._poll_from_now(upstream)


async def _pause(hurry: asyncio.Event) -> None:
    """The time between two polls; a short one if something is in a hurry."""
    await asyncio.sleep(HURRIED_POLL_S)
    try:
        async with asyncio.timeout(POLL_S - HURRIED_POLL_S):
            await hurry.wait()
    except TimeoutError:
        pass  # nobody was in a hurry
    hurry.clear()
