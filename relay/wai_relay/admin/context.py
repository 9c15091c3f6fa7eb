"""What the admin API works on. It owns none of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from wai_protocol.status import NodeStatus
from wai_relay.access.admins import Admins
from wai_relay.access.audit import AuditLog
from wai_relay.access.keys import KeyRing
from wai_relay.access.sign_ins import SignIns
from wai_relay.fleet.invites import InviteAddress, Invites
from wai_relay.fleet.registry import NodeRecord
from wai_relay.observe.explain import Explanations
from wai_relay.observe.live import LiveRequests
from wai_relay.settings import SettingsBook
from wai_relay.usage import UsageReport

if TYPE_CHECKING:  # it shows what is in a context, and is in it
    from .events import Feed


class LiveNode(Protocol):
    """A node that has joined, as `wai_relay.fleet.node.Node` is."""

    @property
    def record(self) -> NodeRecord:
        """Who it is."""

    @property
    def state(self) -> str:
        """ready, starting, draining, reconnecting or offline."""

    @property
    def status(self) -> NodeStatus:
        """What it said last of itself."""

    @property
    def reconnects(self) -> int:
        """How often it came back into a session."""

    @property
    def copied(self) -> bool:
        """Whether a second machine with its identity was found lately."""

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


class Fleet(Protocol):
    """The nodes as they are now; `wai_relay.fleet.nodes.ConnectedFleet` is one."""

    def nodes(self) -> Iterable[LiveNode]:
        """All that have joined."""

    def find(self, name_or_id: str) -> LiveNode | None:
        """The one that a person means."""

    async def remove(self, name_or_id: str) -> NodeRecord:
        """Let it in no more and end its sessions. Raises `RequestError`."""

    def drain(self, name_or_id: str, *, drained: bool = True) -> Any:
        """Give it no new requests, or some again. Raises `RequestError`."""


@dataclass(slots=True)
class Context:
    """Everything that handlers may touch. `address` is what invites say of this relay; a reload may
    change it."""

    fleet: Fleet
    keys: KeyRing
    invites: Invites
    admins: Admins
    audit: AuditLog
    settings: SettingsBook
    usage: UsageReport
    live: LiveRequests
    sign_ins: SignIns
    feed: Feed
    explanations: Explanations
    address: InviteAddress
    version: str
    clock: Callable[[], float] = time.time
