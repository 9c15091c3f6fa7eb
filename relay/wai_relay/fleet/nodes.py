"""The nodes of this relay, as they are now: their sessions, what they serve, and streams to them.

`registry` knows which nodes may come in; this module knows which have. It chooses no node for a
request (`selection`), and moves no bytes (`wai_transport.live_session`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final

import msgspec

from wai_protocol.errors import (
    AuthError,
    Fault,
    NodeUnavailable,
    WaiError,
    fault_for_wire_code,
)
from wai_protocol.events import (
    DataReceived,
    Event,
    GoAwayReceived,
    HeadersReceived,
    NodeEvent,
    ReplyReceived,
    StatusReceived,
    StreamEnded,
    StreamReset,
    Writable,
)
from wai_protocol.handshake import SESSION_ID_BYTES, Claim, Hello, Welcome
from wai_protocol.limits import PROCESS_GROWTH_BYTES, Limits
from wai_protocol.session import Role, Session
from wai_protocol.status import MAX_COUNT, NodeStatus
from wai_protocol.stream import GrowthBudget
from wai_protocol.surface import Headers
from wai_relay.gateway.upstream import ServingNode, Sink, Spent, UpstreamStream
from wai_transport.live_session import Ended, LiveSession

from .invites import Invites
from .kept_models import KeptModels
from .registry import NodeRecord, NodeRegistry, no_such_node
from .tunnel import Admission

MAX_SESSIONS_PER_NODE: Final = 8
"""A node keeps one or two tunnels, and twice that while the relay is being upgraded."""

CALL_TIMEOUT_S: Final = 60.0
"""A CALL starts long work and returns; what takes longer tells of itself by EVENTs."""

MAX_GIVEN_UP: Final = 256
"""Streams of a session that were reset and whose cost the node may still tell: as many as it keeps
track of itself."""

SPENT: Final = "spent"
"""The EVENT that tells what a stream took that was reset (SPEC section 6)."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]

_log = logging.getLogger("wai.nodes")

CallEvents = Callable[[str, Any], None]


class _SpentEvent(msgspec.Struct):
    stream: int
    prompt: _Count | None = None
    cached: _Count | None = None
    completion: _Count | None = None
    exact: bool = False


class _Nobody:
    """A sink for what nobody waits for any more."""

    def on_headers(self, status: int, headers: Headers) -> None:
        """See `Sink`."""

    def on_data(self, data: bytes) -> None:
        """See `Sink`."""

    def on_end(self) -> None:
        """See `Sink`."""

    def on_reset(self, fault: Fault, reason: str) -> None:
        """See `Sink`."""


NOBODY: Final = _Nobody()


class NodeStream(UpstreamStream):
    """One exchange with a node."""

    __slots__ = ("_drained", "_id", "_session", "sink")

    def __init__(self, session: NodeSession, stream_id: int, sink: Sink) -> None:
        self._session: NodeSession | None = session
        self._id = stream_id
        self._drained: asyncio.Future[None] | None = None
        self.sink = sink

    def write(self, data: bytes) -> bool:
        """See `UpstreamStream`."""
        if self._session is None:
            return True
        more = self._session.live.send_data(self._id, data)
        if not more and self._drained is None:
            self._drained = asyncio.get_running_loop().create_future()
        return more

    async def drain(self) -> None:
        """See `UpstreamStream`."""
        if self._drained is not None:
            await asyncio.shield(self._drained)

    def end(self) -> None:
        """See `UpstreamStream`."""
        if self._session is not None:
            self._session.live.end_stream(self._id)

    def reset(self, fault: Fault, reason: str = "") -> None:
        """See `UpstreamStream`."""
        if self._session is not None:
            session = self._session
            session.given_up(self._id, self)
            self.over()
            self.sink = NOBODY
            session.live.reset_stream(self._id, fault, reason)

    def consume(self, n: int) -> None:
        """See `UpstreamStream`."""
        if self._session is not None:
            self._session.live.consume(self._id, n)

    def writable(self) -> None:
        """What waited has left."""
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None

    def over(self) -> None:
        """No more comes or goes. Idempotent."""
        if self._session is not None:
            self._session.streams.pop(self._id, None)
            self._session = None
            self.writable()


class NodeSession:
    """One live session of a node, with the streams and calls that go over it."""

    def __init__(self, node: Node, session_id: bytes, hello: Hello, limits: Limits) -> None:
        self.id = session_id
        self.instance = hello.instance
        self.tunnel = hello.tunnel
        self.limits = limits
        self.node = node
        self.streams: dict[int, NodeStream] = {}
        self._given_up: dict[int, NodeStream] = {}  # oldest first
        self._calls: dict[int, tuple[asyncio.Future[Any], CallEvents | None]] = {}
        self.live = LiveSession(
            Session(Role.RELAY, local=limits, growth=node.fleet.growth),
            on_event=self._on_event,
            on_detached=self._on_detached,
            on_ended=self._on_ended,
            ttl_s=limits.session_ttl_s,
        )

    @property
    def takes_streams(self) -> bool:
        """Whether new requests may go over it now: not before its process has told what it serves,
        since what the one before it served may not be there yet."""
        told = self.node.told_by == self.instance
        return told and self.live.attached and not self.live.core.peer_going_away

    def open(
        self, method: str, target: str, headers: Headers, model: str, sink: Sink, *, end: bool
    ) -> NodeStream:
        """Begin an exchange. Raises `WaiError`."""
        stream_id = self.live.open_stream(method, target, headers, model, end=end)
        stream = NodeStream(self, stream_id, sink)
        self.streams[stream_id] = stream
        return stream

    async def call(
        self, method: str, params: dict[str, Any], on_event: CallEvents | None, timeout_s: float
    ) -> Any:
        """Ask the node for something and wait for its answer. Raises `WaiError`."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        call = self.live.call(method, params)
        self._calls[call] = (future, on_event)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            message = f"node {self.node.name} did not answer `{method}` within {timeout_s:g} s"
            raise WaiError(message, Fault.UPSTREAM_TIMEOUT) from None
        finally:
            self._calls.pop(call, None)
            self.live.core.give_up_call(call)

    def _on_event(self, event: Event) -> None:
        if type(event) is DataReceived:  # each token: 0.3 µs less than by the pattern
            if (stream := self.streams.get(event.stream)) is not None:
                stream.sink.on_data(event.data)
            return
        match event:
            case HeadersReceived(stream_id, status, headers):
                if (stream := self.streams.get(stream_id)) is not None:
                    stream.sink.on_headers(status, headers)
            case StreamEnded(stream_id):
                if (stream := self.streams.get(stream_id)) is not None:
                    # An answer that ended before its request did: the rest is not wanted.
                    stream.over()
                    self.live.reset_stream(stream_id, Fault.CANCELLED, "the answer is complete")
                    stream.sink.on_end()
            case StreamReset(stream_id, fault, reason):
                if (stream := self.streams.get(stream_id)) is not None:
                    stream.over()
                    stream.sink.on_reset(fault, reason)
            case Writable(stream_id):
                if (stream := self.streams.get(stream_id)) is not None:
                    stream.writable()
            case StatusReceived(status):
                self.node.update(status, self.instance)
            case ReplyReceived(call, ok, value):
                self._on_reply(call, value, ok=ok)
            case NodeEvent(call, name, value):
                self._on_node_event(call, name, value)
            case GoAwayReceived(_, reason, _):
                _log.info("node %s is going away: %s", self.node.name, reason)
                self.node.changed()
            case _:
                _log.debug("node %s: %s", self.node.name, type(event).__name__)

    def _on_reply(self, call: int, value: Any, *, ok: bool) -> None:
        waiting = self._calls.pop(call, None)
        if waiting is None or waiting[0].done():
            return
        if ok:
            waiting[0].set_result(value)
            return
        known = isinstance(value, dict)
        code, message = (value.get("code"), value.get("message")) if known else (None, None)
        fault = fault_for_wire_code(code) if isinstance(code, int) else Fault.INTERNAL
        waiting[0].set_exception(WaiError(str(message or "the node refused"), fault))

    def given_up(self, stream_id: int, stream: NodeStream) -> None:
        """A stream is reset; the node may tell what it took."""
        self._given_up[stream_id] = stream
        if len(self._given_up) > MAX_GIVEN_UP:
            del self._given_up[next(iter(self._given_up))]

    def _on_spent(self, value: Any) -> None:
        try:
            told = msgspec.convert(value, _SpentEvent)
        except msgspec.ValidationError as error:
            _log.warning("node %s: a %s event can't be read: %s", self.node.name, SPENT, error)
            return
        stream = self._given_up.pop(told.stream, None)
        if stream is not None and stream.on_spent is not None:
            stream.on_spent(Spent(told.prompt, told.cached, told.completion, told.exact))

    def _on_node_event(self, call: int, name: str, value: Any) -> None:
        if name == SPENT and not call:
            self._on_spent(value)
            return
        waiting = self._calls.get(call)
        if waiting is not None and waiting[1] is not None:
            waiting[1](name, value)
        self.node.fleet.tell(self.node, name, value)

    def left_behind(self, hello: Hello) -> bool:
        """Whether a node that begins a new session with `hello` will not come back into this one:
        its process is another one, or its tunnel has none but the new."""
        if self.instance != hello.instance:
            return True
        leaving = self.live.core.going_away or self.live.core.peer_going_away
        return not leaving and self.tunnel is not None and self.tunnel == hello.tunnel

    def _on_detached(self, live: LiveSession) -> None:
        if live.core.peer_going_away and not live.core.streams:
            live.leave()
        else:
            self.node.detached(live)

    def _on_ended(self, live: LiveSession, why: Ended) -> None:
        self.node.fleet.forget(self)
        self.node.ended(self, why)


class Node(ServingNode):
    """A node that has joined, connected or not."""

    kind = "node"

    def __init__(self, fleet: ConnectedFleet, record: NodeRecord) -> None:
        self.fleet = fleet
        self.record = record
        self.name = record.name
        self.status = self._told = NodeStatus()
        self._kept = KeptModels()
        self.told_by = ""
        """The instance (one run of the node's program) that `status` is from."""
        self.connected_at: float | None = None
        """Since when it has a session, in seconds since 1970; a resumed one goes on."""
        self.agent = ""
        self.reconnects = 0
        self.drained = False
        """Whether the owner said that it shall get no new requests."""
        self.sessions: list[NodeSession] = []

    @property
    def connected(self) -> bool:
        """Whether any of its sessions has a connection now."""
        return any(session.live.attached for session in self.sessions)

    @property
    def ready(self) -> bool:
        """See `ServingNode`."""
        if self.drained or self.status.draining:
            return False
        return any(session.takes_streams for session in self.sessions)

    @property
    def rtt_s(self) -> float | None:  # type: ignore[override]  # read from its sessions
        """See `ServingNode`: over the best of its tunnels."""
        return min((r for s in self.sessions if (r := s.live.core.rtt_s) is not None), default=None)

    @property
    def state(self) -> str:
        """In one word, for people: ready, draining, reconnecting or offline."""
        if self.connected:
            if self.ready:
                return "ready"
            return "draining"
        return "reconnecting" if self.sessions else "offline"

    def open(
        self, method: str, target: str, headers: Headers, model: str, sink: Sink, *, end: bool
    ) -> NodeStream:
        """See `Upstream`. Of several tunnels the one with the fewest streams is taken."""
        return self._session().open(method, target, headers, model, sink, end=end)

    async def call(
        self,
        method: str,
        params: dict[str, Any],
        *,
        on_event: CallEvents | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Any:
        """Ask the node to do something. Raises `WaiError`: its own, or that it can't be asked."""
        return await self._session().call(method, params, on_event, timeout_s)

    def _session(self) -> NodeSession:
        usable = [session for session in self.sessions if session.takes_streams]
        if not usable:
            raise NodeUnavailable(f"node {self.name} is not connected", Fault.SESSION_LOST)
        return min(usable, key=lambda session: len(session.streams))

    def update(self, status: NodeStatus, instance: str) -> None:
        """Take what the node's process `instance` says of itself."""
        now = asyncio.get_running_loop().time()
        if self.told_by not in ("", instance):
            self._kept.begin(self.status, now)
        self.told_by = instance
        self._told = status
        self.status = self._kept.merged(status, now)
        if self._kept.until is not None:
            asyncio.get_running_loop().call_at(self._kept.until, self._let_go)
        self.changed()

    def _let_go(self) -> None:
        """What an earlier run served and this one never had is not expected any more."""
        status = self._kept.merged(self._told, asyncio.get_running_loop().time())
        if status != self.status:
            self.status = status
            self.changed()

    def detached(self, live: LiveSession) -> None:
        """One of its connections was lost; the session waits."""
        _log.info("node %s: connection lost, waiting for it to come back", self.name)
        self.changed()

    def ended(self, session: NodeSession, why: Ended) -> None:
        """One of its sessions is over for good."""
        if session in self.sessions:
            self.sessions.remove(session)
        if not self.sessions:
            self.connected_at = None
        _log.info("node %s: session ended, %s", self.name, why.value)
        self.changed()

    def changed(self) -> None:
        """Tell whoever watches the fleet."""
        self.fleet.node_changed(self)


class ConnectedFleet:
    """All nodes that have joined, and their sessions. Belongs to one loop.

    `on_change` is called with a node whose state or status changed, `on_event` with what a node
    tells on its own.
    """

    def __init__(
        self,
        registry: NodeRegistry,
        invites: Invites,
        *,
        limits: Limits | None = None,
    ) -> None:
        self.growth = GrowthBudget(PROCESS_GROWTH_BYTES)
        self.arrival: asyncio.Event | None = None
        """While nodes of the relay before us are awaited: set when the next one has come."""
        self.on_change: Callable[[Node], None] | None = None
        self.on_event: Callable[[Node, str, Any], None] | None = None
        self._registry = registry
        self._invites = invites
        self.limits = limits or Limits()
        """Of sessions that begin from now on."""
        self._nodes: dict[str, Node] = {}
        self._sessions: dict[bytes, NodeSession] = {}
        self._expected: set[str] = set()
        for record in registry.nodes():
            self._nodes[record.id] = Node(self, record)

    # -- who is there

    def nodes(self) -> Iterable[Node]:
        """All nodes that have joined, in the order in which they did."""
        return self._nodes.values()

    def find(self, name_or_id: str) -> Node | None:
        """The node that a person means by `name_or_id`."""
        found = self._nodes.get(name_or_id)
        if found is not None:
            return found
        return next((node for node in self._nodes.values() if node.name == name_or_id), None)

    @property
    def sessions(self) -> int:
        """How many sessions live, connected or waiting."""
        return len(self._sessions)

    def expect_all(self, within_s: float) -> None:
        """Every node may come back now; for so long, or until all are there, there is an
        `arrival` to wait for."""
        self._expected = set(self._nodes)
        if self._expected:
            self.arrival = asyncio.Event()
            asyncio.get_running_loop().call_later(within_s, self._settle)

    def _settle(self) -> None:
        self._expected.clear()
        if self.arrival is not None:
            self.arrival.set()
            self.arrival = None

    def _arrived(self, node: Node) -> None:
        self._expected.discard(node.record.id)
        if not self._expected:
            self._settle()
        elif self.arrival is not None:
            self.arrival.set()
            self.arrival = asyncio.Event()

    # -- coming in

    async def admit(self, claim: Claim) -> Admission:
        """Let a node in that has proven its key: into its session if it has it still, else a new
        one. Raises `AuthError` or `RequestError`."""
        hello = claim.hello
        if claim.invite_secret is not None:
            name = hello.name or None
            record = await self._invites.redeem(claim.invite_secret, hello.public, name)
        else:
            record = self._registry.by_public_key(hello.public)
        node = self._nodes.get(record.id)
        if node is None:
            node = self._nodes[record.id] = Node(self, record)
        node.record, node.name, node.agent = record, record.name, hello.agent
        session = self._resumable(node, hello)
        resumed = session is not None
        for old in [s for s in node.sessions if s is not session and s.left_behind(hello)]:
            old.live.replace()  # what it had open is lost
        if session is None:
            session = self._new_session(node, hello)
        # The newest connection wins, now: what the old one still brought would not be counted.
        session.live.drop_connection()
        node.reconnects += resumed
        welcome = Welcome(
            session=session.id,
            received=session.live.core.received,
            resumed=resumed,
            node_id=record.id,
            name=record.name,
            limits=session.limits,
        )
        asyncio.get_running_loop().call_soon(node.changed)
        return Admission(session.live, welcome)

    def _resumable(self, node: Node, hello: Hello) -> NodeSession | None:
        session = self._sessions.get(hello.session) if hello.session is not None else None
        if session is None or session.node is not node or session.instance != hello.instance:
            return None
        return session

    def _new_session(self, node: Node, hello: Hello) -> NodeSession:
        if len(node.sessions) >= MAX_SESSIONS_PER_NODE:
            raise AuthError("this node has too many sessions", Fault.OVERLOADED, retry_after_s=30)
        session = NodeSession(node, os.urandom(SESSION_ID_BYTES), hello, self.limits)
        self._sessions[session.id] = session
        node.sessions.append(session)
        if node.connected_at is None:
            node.connected_at = time.time()
        return session

    # -- going

    async def remove(self, name_or_id: str) -> NodeRecord:
        """Let a node in no more; its sessions end now. Raises `RequestError` (NODE_NOT_FOUND)."""
        node = self._get(name_or_id)
        record = await self._registry.remove(node.record.id)
        del self._nodes[record.id]
        for session in list(node.sessions):
            session.live.close(Fault.NODE_REMOVED, "the node was removed from this relay")
        return record

    def drain(self, name_or_id: str, *, drained: bool = True) -> Node:
        """Give a node no new requests, or give it some again. Raises `RequestError`."""
        node = self._get(name_or_id)
        node.drained = drained
        node.changed()
        return node

    def go_away(self, reason: str, *, reconnect_in_s: float | None) -> None:
        """Tell every node that this relay is going; what is in flight goes on."""
        for session in self._sessions.values():
            session.live.go_away(Fault.DRAINING, reason, reconnect_in_s=reconnect_in_s)

    def close(self) -> None:
        """End every session; streams that are left are reset."""
        for session in list(self._sessions.values()):
            session.live.close(Fault.DRAINING, "the relay is shutting down")

    def _get(self, name_or_id: str) -> Node:
        node = self.find(name_or_id)
        if node is None:
            raise no_such_node(name_or_id)
        return node

    # -- told by nodes and sessions

    def forget(self, session: NodeSession) -> None:
        """A session is over."""
        self._sessions.pop(session.id, None)

    def node_changed(self, node: Node) -> None:
        """A node's state or status changed."""
        if self.on_change is not None:
            self.on_change(node)
        if node.record.id in self._expected and node.ready and node.status.models:
            self._arrived(node)

    def tell(self, node: Node, name: str, value: Any) -> None:
        """A node told of something."""
        if self.on_event is not None:
            self.on_event(node, name, value)
