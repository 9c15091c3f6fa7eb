"""What the admin API works on. It owns none of it."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from wai_relay.access.admins import Admins
from wai_relay.access.audit import AuditLog
from wai_relay.access.keys import KeyRing
from wai_relay.access.sign_ins import SignIns
from wai_relay.fleet.invites import InviteAddress, Invites, node_address
from wai_relay.fleet.relays import Relays
from wai_relay.gateway.replay import Replays
from wai_relay.health.health import Health
from wai_relay.notify.notifier import Notifier
from wai_relay.observe.captures import Captures
from wai_relay.observe.explain import Explanations
from wai_relay.observe.live import LiveRequests
from wai_relay.observe.node_hours import NodeHours
from wai_relay.policy.months import MonthTokens
from wai_relay.settings import SettingsBook
from wai_relay.usage import RequestHistory, UsageReport

from .events import Feed
from .live_nodes import LiveFleet
from .peers import Peers


class Context(msgspec.Struct):
    """Everything that handlers may touch. `address` is what the configuration says of this relay;
    a reload may change it, and `node_url`."""

    fleet: LiveFleet
    keys: KeyRing
    invites: Invites
    admins: Admins
    audit: AuditLog
    settings: SettingsBook
    usage: UsageReport
    history: RequestHistory
    months: MonthTokens
    live: LiveRequests
    sign_ins: SignIns
    feed: Feed
    explanations: Explanations
    node_hours: NodeHours
    captures: Captures
    replays: Replays
    address: InviteAddress
    version: str
    relays: Relays
    peers: Peers
    health: Health
    notifier: Notifier
    node_url: str | None = None
    certificate_hosts: Callable[[], frozenset[str]] = frozenset
    """The names that the shown certificate is good for."""
    clock: Callable[[], float] = time.time

    @property
    def public_url(self) -> str:
        """The relay's URL for callers, nodes and browsers, without a slash at the end."""
        return self.settings.now.public_url or self.address.url

    @property
    def node_address(self) -> InviteAddress:
        """How nodes reach this very relay, and know it."""
        return node_address(self.address, self.public_url, self.node_url, self.certificate_hosts())
