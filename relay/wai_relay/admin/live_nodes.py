"""The nodes as the admin API asks for them and shows them.

`wai_relay.fleet` has them; the API needs no more of it than is named here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from wai_api.nodes import ModelView, NodeView
from wai_protocol.status import NodeStatus
from wai_relay.fleet.registry import NodeRecord
from wai_relay.health.nodes import WatchedNode
from wai_relay.observe.node_hours import NodeNow


class LiveNode(WatchedNode, Protocol):
    """A node that has joined, as `wai_relay.fleet.node.Node` is."""

    @property
    def reconnects(self) -> int:
        """How often it came back into a session."""

    @property
    def rtt_s(self) -> float | None:
        """The way there and back as last measured; None until it was."""

    @property
    def agent(self) -> str:
        """What software it said it is."""

    @property
    def connected(self) -> bool:
        """Whether it can be asked for something now."""

    @property
    def connected_at(self) -> float | None:
        """Since when it has a session, in seconds since 1970; a resumed one goes on."""

    @property
    def told_by(self) -> str:
        """The run of its program that its status is from; "" before the first."""

    async def call(self, method: str, params: dict[str, Any], *, timeout_s: float = ...) -> Any:
        """Ask it to do something. Raises `WaiError`."""


def came(node: LiveNode) -> tuple[str, int, float | None]:
    """What is another one whenever `node` has come, or has come back."""
    return node.told_by, node.reconnects, node.connected_at


class LiveFleet(Protocol):
    """The nodes as they are now; `wai_relay.fleet.nodes.ConnectedFleet` is one."""

    def nodes(self) -> Iterable[LiveNode]:
        """All that have joined."""

    def find(self, name_or_id: str) -> LiveNode | None:
        """The one that a person means."""

    async def remove(self, name_or_id: str) -> NodeRecord:
        """Let it in no more and end its sessions. Raises `RequestError`."""

    async def drain(self, name_or_id: str, *, drained: bool = True) -> None:
        """Give it no new requests, or some again. Raises `RequestError`, `StoreError`."""

    async def set_slots(self, name_or_id: str, upstream: str, slots: int | None) -> None:
        """Say how many requests an upstream works on. Raises `RequestError`, `StoreError`."""

    async def rename(self, name_or_id: str, name: str) -> None:
        """Give it another name. Raises `RequestError`, `StoreError`."""


def node_view(node: LiveNode) -> NodeView:
    """A node as the API shows it; what it said of itself only while it is there."""
    there = node.state != "offline"
    serving = tuple(
        ModelView(**{name: getattr(model, name) for name in ModelView.__struct_fields__})
        for model in (node.status.models if there else ())
    )
    busy, total = _slots_of(node.status) if there else (0, None)
    return NodeView(
        id=node.record.id,
        name=node.record.name,
        state=node.state,
        models=tuple(dict.fromkeys(model.id for model in serving)),
        serving=serving,
        slots_total=total,
        slots_busy=busy,
        queued=sum(model.queued for model in serving),
        reconnects=node.reconnects,
        copied=node.copied,
        connected_at=node.connected_at,
        version=node.status.version,
        agent=node.agent,
        tags=node.record.tags,
        may_deploy=node.record.may_deploy,
        slots_set=dict(node.record.slots),
        joined_at=node.record.created_at,
        detail=node.status.detail,
    )


def now_of(node: LiveNode, use: float | None) -> NodeNow:
    """A node as its history sees it; `use`: of its machine, as it was told lately."""
    busy, total = _slots_of(node.status)
    return NodeNow(
        id=node.record.id,
        name=node.record.name,
        there=node.connected,
        slots_busy=busy,
        slots_total=total,
        reconnects=node.reconnects,
        rtt_s=node.rtt_s,
        use=use,
    )


def _slots_of(status: NodeStatus) -> tuple[int, int | None]:
    """The slots that are busy, and all; None where no model's server tells them."""
    # What is downloading or starting takes no request: its slots are none that anybody can have.
    ready = [model for model in status.models if model.ready]
    told = [model.slots_total for model in ready if model.slots_total is not None]
    return sum(model.slots_busy for model in ready), sum(told) if told else None
