"""The nodes of this relay: who has joined, who is there, how they come in and leave.

`registry` knows which nodes may come in; this module knows which have. It chooses no node for a
request (`selection`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from wai_protocol.errors import AuthError, Fault
from wai_protocol.handshake import SESSION_ID_BYTES, Hello, ProvenHello, Welcome
from wai_protocol.limits import PROCESS_GROWTH_BYTES, Limits
from wai_protocol.relay_list import RelayList
from wai_protocol.window import GrowthBudget

from .instances import COPY_RETRY_S, InstanceVerdict
from .invites import Invites
from .node import Node
from .registry import NodeRecord, NodeRegistry, no_such_node
from .session import NodeSession
from .tunnel import AdmittedNode

MAX_SESSIONS_PER_NODE: Final = 8
"""A node keeps one or two tunnels, and twice that while the relay is being upgraded."""

MISSED_S: Final = 600.0
"""For how long after a start a node that has not come back counts as missing: a box that was
rebooted is there by then; one that is gone for good must not make each typing error "not now"."""

PROBE_S: Final = 2.5
"""How long a connected machine may take to show that it lives when another one comes with its
identity: ten round trips. After a power cut the node's next run is let in this much later."""

_COPY_REFUSED: Final = (
    "node %s: a second machine with its identity was refused, since the first one is connected; its"
    " data folder was copied. Join the second one with a new invite and a fresh data folder"
)
_COPY_REPLACED: Final = (
    "node %s: two machines use its identity in turn; the first one stays, and the other is refused"
    " from now on. Join that with a new invite and a fresh data folder"
)

_log = logging.getLogger("wai.nodes")


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
        self.changes = 0
        """See `Fleet`."""
        self.on_change: Callable[[Node], None] | None = None
        self.on_event: Callable[[Node, str, Any], None] | None = None
        self._registry = registry
        self._invites = invites
        self.limits = limits or Limits()
        """Of sessions that begin from now on."""
        self._nodes: dict[str, Node] = {}
        self._sessions: dict[bytes, NodeSession] = {}
        self._expected: set[str] = set()
        self._missed_until = 0.0  # by the loop's clock
        self.relays = RelayList()
        """The relays that share this fleet, as nodes are told; empty where there is one alone."""
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
        self._missed_until = asyncio.get_running_loop().time() + MISSED_S
        self._expected = set(self._nodes)
        if self._expected:
            self.arrival = asyncio.Event()
            asyncio.get_running_loop().call_later(within_s, self._settle)

    @property
    def missing(self) -> int:
        """How many nodes may serve what nobody is known to serve: those that are connected and have
        not told yet, and, for a while after `expect_all`, those that have not come back. Later
        not: they may never."""
        awaited = asyncio.get_running_loop().time() < self._missed_until
        return sum(node.learning or (awaited and not node.told_by) for node in self._nodes.values())

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

    async def admit(self, claim: ProvenHello) -> AdmittedNode:
        """Let a node in that has proven its key: into its session if it has it still, else a new
        one. Raises `AuthError` or `RequestError`."""
        hello = claim.hello
        if claim.invite_secret is not None:
            name = hello.name or None
            record = await self._invites.redeem(claim.invite_secret, hello.public, name, hello.host)
        else:
            record = await self._registry.find_joined(hello.public)
        node = self._know(record)
        if claim.invite_secret is None:
            await self._keep_copies_out(node, hello)
            record = self._registry.by_public_key(hello.public)  # it may be removed by now
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
        return AdmittedNode(session.live, welcome)

    def _know(self, record: NodeRecord) -> Node:
        node = self._nodes.get(record.id)
        if node is None:
            node = self._nodes[record.id] = Node(self, record)
            self.changes += 1
        return node

    async def _keep_copies_out(self, node: Node, hello: Hello) -> None:
        """Raise `AuthError` if another machine has this node's identity, and was here before."""
        if self._resumable(node, hello) is not None:
            return  # no newcomer
        others = {s for s in node.sessions if s.instance != hello.instance and s.stays}
        names = {session.instance for session in others}
        now = asyncio.get_running_loop().time()
        verdict = node.instances.judge(hello.instance, names, now)
        if verdict is InstanceVerdict.ASK:
            answers = [s.answers(PROBE_S) for s in others if s.live.attached]
            verdict = (
                InstanceVerdict.REFUSE
                if any(await asyncio.gather(*answers))
                else InstanceVerdict.ADMIT
            )
            names = {session.instance for session in node.sessions} & names
        if verdict is InstanceVerdict.REFUSE:
            if node.instances.refused(hello.instance, now):
                _log.warning(_COPY_REFUSED, node.name)
                self.node_changed(node)
            raise AuthError(
                "another machine with this node's identity is connected: its data folder was"
                " copied. To make a node of this one, join with a new invite and a fresh data"
                " folder (`wai node join INVITE --data DIR`)",
                Fault.IDENTITY_COPIED,
                retry_after_s=COPY_RETRY_S,
            )
        if node.instances.admitted(hello.instance, names, now):
            _log.warning(_COPY_REPLACED, node.name)

    def _resumable(self, node: Node, hello: Hello) -> NodeSession | None:
        session = self._sessions.get(hello.session) if hello.session is not None else None
        if session is None or session.node is not node or session.instance != hello.instance:
            return None
        return session

    def _new_session(self, node: Node, hello: Hello) -> NodeSession:
        if len(node.sessions) >= MAX_SESSIONS_PER_NODE:
            raise AuthError("this node has too many sessions", Fault.OVERLOADED, retry_after_s=30)
        session_id = os.urandom(SESSION_ID_BYTES)
        session = NodeSession(node, session_id, hello, self.limits, self.growth)
        self._sessions[session.id] = session
        node.sessions.append(session)
        session.tell_relays(self.relays)
        if node.connected_at is None:
            node.connected_at = time.time()
        return session

    # -- going

    async def remove(self, name_or_id: str) -> NodeRecord:
        """Let a node in no more; its sessions end now, before the disk knows.

        Raises `RequestError` (NODE_NOT_FOUND), or `StoreError` if it could not be written: then it
        is out until the relay restarts, and still listed, so that it can be removed once more.
        """
        node = self._get(name_or_id)
        self._cut_off(node)
        record = await self._registry.remove(node.record.id)
        self._let_go(node)
        return record

    def _cut_off(self, node: Node) -> None:
        for session in list(node.sessions):
            session.live.close(Fault.NODE_REMOVED, "the node was removed from this relay")

    def _let_go(self, node: Node) -> None:
        """List a node no more that was removed, here or at another relay."""
        self._cut_off(node)
        if self._nodes.pop(node.record.id, None) is not None:
            self.changes += 1

    async def drain(self, name_or_id: str, *, drained: bool = True) -> None:
        """Give a node no new requests, or give it some again; after a restart too.

        Raises `RequestError`, or `StoreError` if it could not be written.
        """
        node = self._get(name_or_id)
        try:
            await self._registry.set_drained(node.record.id, drained=drained)
        finally:
            self._take_over_record(node)

    async def set_slots(self, name_or_id: str, upstream: str, slots: int | None) -> None:
        """Say how many requests an upstream that does not tell works on at once; None: learn it.

        Raises `RequestError`, or `StoreError` if it could not be written.
        """
        node = self._get(name_or_id)
        try:
            await self._registry.set_slots(node.record.id, upstream, slots)
        finally:
            self._take_over_record(node)

    async def rename(self, name_or_id: str, name: str) -> None:
        """Give a node another name, under which it is known from its next request on.

        Raises `RequestError` (NODE_NOT_FOUND, NAME_TAKEN), or `StoreError`.
        """
        node = self._get(name_or_id)
        await self._registry.rename(node.record.id, name)
        self._take_over_record(node)

    async def follow(self, node_id: str | None = None) -> None:
        """Take over what another relay has made of one node, or of all: one joined, was renamed,
        drained or removed. Raises `StoreError`."""
        await self._registry.follow(node_id)
        for record in self._registry.nodes():
            if node_id in (None, record.id) and (node := self._know(record)).record != record:
                node.take_record(record)
        for node in list(self._nodes.values()):
            gone = self._registry.get(node.record.id) is None
            if gone and not self._registry.removes(node.record.id):
                self._let_go(node)

    def tell_relays(self, relays: RelayList) -> None:
        """Tell every node, now and when it comes, of the relays that share this fleet."""
        self.relays = relays
        for session in self._sessions.values():
            session.tell_relays(relays)

    def _take_over_record(self, node: Node) -> None:
        record = self._registry.get(node.record.id)
        if record is not None:
            node.take_record(record)

    def go_away(self, reason: str, *, reconnect_in_s: float | None) -> None:
        """Tell every node that this relay is going; what is in flight goes on. The port is closed:
        what waits for its node's next connection is lost."""
        for session in list(self._sessions.values()):
            live = session.live
            live.core.go_away(Fault.DRAINING, reason, reconnect_in_s=reconnect_in_s)
            if live.attached:
                live.flush()
            else:
                session.give_up()

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
        self.changes += 1
        if self.on_change is not None:
            self.on_change(node)
        if node.record.id in self._expected and node.ready and node.status.models:
            self._arrived(node)

    def node_told(self, node: Node, name: str, value: Any) -> None:
        """A node told of something."""
        if self.on_event is not None:
            self.on_event(node, name, value)
