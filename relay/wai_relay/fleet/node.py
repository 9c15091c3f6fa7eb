"""A node as it is now: what it serves, whether it takes requests, and over which session.

Who it is and that it may come in is `registry`'s; a request's choice of a node is `selection`'s.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, Protocol

from msgspec.structs import replace

from wai_protocol.errors import Fault, NodeUnavailable
from wai_protocol.status import MAX_MODELS, NodeStatus
from wai_protocol.surface import Headers
from wai_relay.contracts.upstream import ServingNode, Sink
from wai_transport.live_session import Ended, LiveSession

from .instances import Instances
from .kept_models import KeptModels
from .registry import NodeRecord
from .session import NodeSession
from .stream import NodeStream

CALL_TIMEOUT_S: Final = 60.0
"""A CALL starts long work and returns; what takes longer tells of itself by EVENTs."""

_log = logging.getLogger("wai.nodes")


class FleetOfNode(Protocol):
    """What a node tells the fleet that it belongs to (`nodes.ConnectedFleet`)."""

    def node_changed(self, node: Node, /) -> None:
        """Its state or its status changed."""

    def node_told(self, node: Node, name: str, value: Any, /) -> None:
        """It sent an EVENT."""

    def forget(self, session: NodeSession, /) -> None:
        """One of its sessions is over."""


class Node(ServingNode):
    """A node that has joined, connected or not."""

    kind = "node"

    def __init__(self, fleet: FleetOfNode, record: NodeRecord) -> None:
        self._fleet = fleet
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
        self.instances = Instances()
        self.sessions: list[NodeSession] = []

    @property
    def connected(self) -> bool:
        """Whether any of its sessions has a connection now."""
        return any(session.live.attached for session in self.sessions)

    @property
    def learning(self) -> bool:
        """Whether it is connected but has not told yet what it serves: it asks its servers first,
        which takes seconds where one of them does not answer."""
        return not self.told_by and self.connected

    @property
    def copied(self) -> bool:
        """Whether a second machine with its identity was found lately."""
        return self.instances.is_copied(asyncio.get_running_loop().time())

    @property
    def ready(self) -> bool:
        """See `ServingNode`."""
        if self.record.drained or self.status.draining or self.learning:
            return False
        return any(session.takes_streams for session in self.sessions)

    @property
    def drained(self) -> bool:
        """See `ServingNode`."""
        return self.record.drained

    @property
    def rtt_s(self) -> float | None:  # type: ignore[override]  # read from its sessions
        """See `ServingNode`: over the best of its tunnels."""
        return min((r for s in self.sessions if (r := s.live.core.rtt_s) is not None), default=None)

    @property
    def state(self) -> str:
        """In one word, for people: ready, starting, draining, reconnecting or offline."""
        if self.connected:
            if self.ready:
                return "ready"
            return "starting" if self.learning else "draining"
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
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Any:
        """Ask the node to do something, also one that has not told yet what it serves.

        Raises `WaiError`: its own, or that it can't be asked.
        """
        asked = [session for session in self.sessions if session.live.attached and session.stays]
        if not asked:
            raise self._away()
        return await asked[0].call(method, params, timeout_s)

    def _session(self) -> NodeSession:
        usable = [session for session in self.sessions if session.takes_streams]
        if not usable:
            raise self._away()
        if len(usable) == 1:
            return usable[0]
        return min(usable, key=lambda session: len(session.streams))

    def _away(self) -> NodeUnavailable:
        return NodeUnavailable(f"node {self.name} is not connected", Fault.SESSION_LOST)

    def update(self, status: NodeStatus, instance: str) -> None:
        """Take what the node's process `instance` says of itself."""
        now = asyncio.get_running_loop().time()
        if self.told_by not in ("", instance):
            self._kept.begin(self.status, now)
        self.told_by = instance
        self._note_left_out(status)
        self._told = status
        self.status = self._merged(now)
        if self._kept.until is not None:
            asyncio.get_running_loop().call_at(self._kept.until, self._let_go)
        self.changed()

    def take_record(self, record: NodeRecord) -> None:
        """Be what an admin has made of it: another name, drained, other slots."""
        self.record, self.name = record, record.name
        self.status = self._merged(asyncio.get_running_loop().time())
        self.changed()

    def _merged(self, now: float) -> NodeStatus:
        """What the node serves: as it tells, with what is kept of its last run and what an admin
        says of upstreams that do not tell their slots."""
        status, slots = self._kept.merged(self._told, now), self.record.slots
        if not slots:
            return status
        models = tuple(
            replace(model, slots_total=slots[model.upstream])
            if model.slots_total is None and model.upstream in slots
            else model
            for model in status.models
        )
        return replace(status, models=models)

    def _note_left_out(self, status: NodeStatus) -> None:
        """Say in the log that the node serves more models than it can tell of."""
        left_out = status.models_left_out
        if left_out and left_out != self._told.models_left_out:
            _log.warning(
                "node %s: %d of its models are not served, since a node can tell of %d at most",
                *(self.name, left_out, MAX_MODELS),
            )

    def _let_go(self) -> None:
        """What an earlier run served and this one never had is not expected any more."""
        status = self._merged(asyncio.get_running_loop().time())
        if status != self.status:
            self.status = status
            self.changed()

    def heard(self, name: str, value: Any) -> None:
        """The node sent an EVENT."""
        self._fleet.node_told(self, name, value)

    def detached(self, live: LiveSession) -> None:
        """One of its connections was lost; the session waits."""
        _log.info("node %s: connection lost, waiting for it to come back", self.name)
        self.changed()

    def ended(self, session: NodeSession, why: Ended) -> None:
        """One of its sessions is over for good."""
        self._fleet.forget(session)
        if session in self.sessions:
            self.sessions.remove(session)
        if not self.sessions:
            self.connected_at = None
        _log.info("node %s: session ended, %s", self.name, why.value)
        self.changed()

    def changed(self) -> None:
        """Tell whoever watches the fleet."""
        self._fleet.node_changed(self)
