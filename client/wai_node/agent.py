"""The node at work: tunnels to the relay on one side, upstreams on the other, streams in between.

It joins the parts, which run under `Supervision`: one that fails is started again while the others
go on. `run` works until it is cancelled; `drain` lets what is in flight end first.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from msgspec.structs import replace

from wai_protocol.errors import Fault
from wai_protocol.events import (
    CallReceived,
    DataReceived,
    Event,
    StreamEnded,
    StreamOpened,
    StreamReset,
    Writable,
)
from wai_protocol.handshake import Hello, Welcome
from wai_protocol.identity import NodeKey
from wai_protocol.known_relay import KnownRelay
from wai_protocol.limits import Limits
from wai_protocol.relay_list import RelayList
from wai_protocol.status import MAX_MODELS, MAX_NAME_CHARS, NodeStatus
from wai_protocol.surface import ROUTES, RouteTable
from wai_transport.live_session import LiveSession

from .calls import Calls
from .forwarding.forward import Forwarder
from .standing import Standing
from .supervision import Supervision
from .tunnel.black_hole import LOOK_EVERY_S
from .tunnel.dial import RelayAddress
from .tunnel.links import RelayLinks, reach_directly
from .tunnel.network import watch_network
from .tunnel.tunnel import Tunnel
from .upstreams.board import Board
from .upstreams.upstream import Upstream
from .upstreams.watch import PARTS_DOWN, Watch

DRAIN_LOOK_S: Final = 0.1
"""How often a draining node looks whether its last stream is over, and with its relay."""

LAST_WORDS_S: Final = 0.2
"""From the last stream's end to the end of the sessions: its last bytes leave meanwhile."""

_log = logging.getLogger("wai.node")


class Agent:
    """A node. `calls.handler` answers what the relay asks."""

    def __init__(
        self,
        address: RelayAddress,
        key: NodeKey,
        name: str,
        *,
        version: str,
        tunnels: int = 1,
        given: list[Upstream] | None = None,
        discover: Callable[[frozenset[int]], Awaitable[list[Upstream]]] | None = None,
        detail: dict[str, Any] | None = None,
        limits: Limits | None = None,
        routes: RouteTable = ROUTES,
        on_standing: Callable[[Standing], None] = lambda _: None,
        known: RelayList | None = None,
        reach: Callable[[KnownRelay], RelayAddress] = reach_directly,
        keep_relays: Callable[[RelayList], None] = lambda _: None,
    ) -> None:
        hello = Hello(
            public=key.public,
            name=name,
            endpoint_hash=b"",
            limits=limits or Limits(),
            agent=f"wai/{version}",
            instance=secrets.token_hex(8),
        )
        self.board = Board(routes)
        self.parts = Supervision(self._parts_changed)
        self.watch = Watch(
            self.board,
            self._publish,
            given=given,
            discover=discover,
            version=version,
            detail=detail,
            parts=self.parts,
        )
        self.forwarder = Forwarder(self.board, self.watch, routes=routes)

        def make(to: RelayAddress) -> list[Tunnel]:
            return [Tunnel(to, key, replace(hello, tunnel=n), self) for n in range(tunnels)]

        self.links = RelayLinks(
            address, known or RelayList(), make=make, reach=reach, keep=keep_relays
        )
        self.forwarder.judges_slots = self.links.several
        self._sessions: set[LiveSession] = set()
        self._status: NodeStatus | None = None
        self._on_standing = on_standing
        self._standing = Standing()
        self.calls = Calls()
        self.draining = False

    @property
    def connected(self) -> bool:
        """Whether any tunnel has a connection."""
        return self.links.connected

    async def run(self) -> None:
        """Work until cancelled. Streams that are still open then are cut."""
        self._on_standing(self._standing)
        try:
            self.parts.start(
                "network watch", partial(watch_network, self._moved, self.links.routes)
            )
            self.parts.start("path watch", self._look_at_paths)
            self.links.start(self.parts)
            await self.watch.run()
        finally:
            await self.parts.aclose()
            self.links.close()
            self.calls.cancel()
            self.forwarder.close()

    async def drain(self, bound_s: float) -> int:
        """Take no new streams; return once the relays have the whole answers of those in flight, or
        after `bound_s` seconds, with how many are left."""
        self.draining = True
        self.watch.drain()
        answering = [session for session in self._sessions if session.core.streams]
        for session in self._sessions:
            session.core.go_away(Fault.DRAINING, "the node is stopping")
            session.flush()
        try:
            async with asyncio.timeout(bound_s):
                while self.open_streams:  # noqa: ASYNC110 - a stop, not a hot path
                    await asyncio.sleep(DRAIN_LOOK_S)
                await _delivered(answering)
        except TimeoutError:
            return self.open_streams
        await asyncio.sleep(LAST_WORDS_S)
        return 0

    @property
    def open_streams(self) -> int:
        """Streams whose answer is not whole, or waits to be sent: for a slow caller, or because the
        connection was lost."""
        return max(
            self.forwarder.active_streams, sum(session.core.streams for session in self._sessions)
        )

    def follow_relays(self, told: RelayList) -> None:
        """A relay told which relays there are. Raises `RequestError`."""
        self.links.follow(told)
        self.forwarder.judges_slots = self.links.several

    # -- what tunnels tell

    def on_event(self, session: LiveSession, event: Event) -> None:
        """Something came over `session`: pass it to whom it concerns.

        What a part of the node raises ends the stream that it concerns, here and at the upstream;
        `session` logs it and tells the relay.
        """
        try:
            self._dispatch(session, event)
        except Exception:
            if isinstance(stream := getattr(event, "stream", None), int):
                self.forwarder.failed(session, stream)
            raise

    def _dispatch(self, session: LiveSession, event: Event) -> None:
        forwarder = self.forwarder
        match event:
            case DataReceived(stream, data):
                forwarder.data(session, stream, data)
            case StreamOpened(stream, method, target, headers, model, end):
                if self.draining:
                    session.core.reset_stream(stream, Fault.DRAINING, "the node is stopping")
                    session.flush()
                    return
                forwarder.opened(session, stream, method, target, headers, model, ended=end)
            case StreamEnded(stream):
                forwarder.ended(session, stream)
            case StreamReset(stream, _, _):
                forwarder.reset(session, stream)
            case Writable(stream):
                forwarder.writable(session, stream)
            case CallReceived(call, method, params):
                self.calls.received(session, call, method, params)
            case _:
                _log.debug("%s", type(event).__name__)

    def on_session(self, session: LiveSession, welcome: Welcome) -> None:
        """A new session: say what we serve."""
        _log.info("connected to the relay as %s", welcome.name)
        self._sessions.add(session)
        if self._status is not None:
            session.core.send_status(self._status)
            session.flush()

    def on_session_ended(self, session: LiveSession) -> None:
        """A session is over for good."""
        self._sessions.discard(session)
        self.forwarder.lost(session)

    def on_dialled(self, problem: str) -> None:
        """Of several tunnels and relays, one that is connected is enough."""
        self._stand(replace(self._standing, connected=self.connected, problem=problem))

    def _stand(self, standing: Standing) -> None:
        if standing != self._standing:
            self._standing = standing
            self._on_standing(standing)

    def _parts_changed(self, down: dict[str, str]) -> None:
        self.watch.tell(PARTS_DOWN, down)
        self._stand(replace(self._standing, parts_down=down))

    def tell_engine(self, detail: dict[str, Any], problem: str) -> None:
        """Show the engine of the node's own models, in STATUS and to `wai doctor`."""
        self.watch.tell("engine", detail)
        self._stand(replace(self._standing, engine_problem=problem))

    def tell(self, name: str, value: Any) -> None:
        """Tell each relay that something happened, over whichever of its sessions is there."""
        for tunnels in self.links.relays:
            connected = (t.session for t in tunnels if t.connected)
            if (session := next(connected, None)) is not None:
                session.core.emit(name, value)
                session.flush()

    # -- what upstreams and the network tell

    def _publish(self, status: NodeStatus) -> None:
        before = {model.id for model in self._status.models} if self._status else None
        now = {model.id for model in status.models}
        down = _down_in(status)
        if before != now:
            nothing = "no upstream can be used" if down else "no upstream found"
            _log.info("serving: %s", ", ".join(sorted(now)) or f"nothing yet, {nothing}")
        left_out = self._status.models_left_out if self._status else 0
        if status.models_left_out and status.models_left_out != left_out:
            _log.warning(
                "%d models are not served: a node can tell the relay of %d at most, with ids of up"
                " to %d characters. Serve fewer at the upstreams, or run a second node",
                *(status.models_left_out, MAX_MODELS, MAX_NAME_CHARS),
            )
        self._status = status
        models = tuple(sorted(now))
        self._stand(replace(self._standing, models=models, upstreams_down=down))
        for session in self._sessions:
            session.core.send_status(status)
            session.flush()

    async def _look_at_paths(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.links.look_at_paths()

    def _moved(self, reason: str) -> None:
        _log.info("%s: dialling the relay again", reason)
        self.links.redial()


async def _delivered(sessions: list[LiveSession]) -> None:
    """Wait until the relays have received all that was sent in `sessions`: what is under way is
    lost with a connection, and only we could send it again. A session that is over counts."""
    while waiting := [s for s in sessions if s.ended is None and s.core.unacknowledged_bytes]:
        for session in waiting:
            if session.core.unanswered_ping_at is None:  # an ACK comes before each PONG
                session.probe()
        await asyncio.sleep(DRAIN_LOOK_S)


def _down_in(status: NodeStatus) -> dict[str, str]:
    """The upstreams that can't be used, with the reasons."""
    told = status.detail.get("upstreams", {})
    return {name: str(one.get("error", "")) for name, one in told.items() if not one["up"]}
