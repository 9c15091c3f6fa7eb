"""What a relay consists of, and how its parts are put together.

`build` opens nothing and starts nothing; `life` does that with what it returns.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from wai_protocol.identity import RelayKey
from wai_protocol.limits import Limits
from wai_relay.admin.context import Context
from wai_relay.admin.elsewhere import Elsewhere
from wai_relay.admin.events import Feed
from wai_relay.admin.live_nodes import now_of
from wai_relay.admin.peers import Peers
from wai_relay.app import App, Readiness
from wai_relay.config import RelayConfig
from wai_relay.contracts.records import Recorder
from wai_relay.database import DATABASE_FILE
from wai_relay.fleet.invites import InviteAddress
from wai_relay.fleet.node import Node
from wai_relay.fleet.nodes import ConnectedFleet
from wai_relay.fleet.providers import ProvidedFleet, providers_of
from wai_relay.fleet.tunnel import Tunnels
from wai_relay.gateway.dialects.registry import installed_dialects
from wai_relay.gateway.dispatch import ScheduledDispatcher
from wai_relay.gateway.gateway import Gateway
from wai_relay.gateway.replay import Replays
from wai_relay.gateway.settling import SettlingDispatcher
from wai_relay.health.condition import RelayCondition
from wai_relay.health.folder_probe import FolderProbe
from wai_relay.health.health import Health
from wai_relay.health.keys import KnownKey
from wai_relay.health.watch import HealthWatch
from wai_relay.http.asgi import Application, asgi_handler
from wai_relay.http.cors import CrossOrigin
from wai_relay.http.edge import Edge
from wai_relay.http.trusted_proxies import TrustedProxies
from wai_relay.installer import InstallerPages
from wai_relay.notify.notifier import Notifier, receivers_of
from wai_relay.observe.access_log import AccessLog
from wai_relay.observe.hardware import HardwareBook, use_of
from wai_relay.observe.metrics import Metrics, MetricsPage
from wai_relay.observe.node_hours import NodeHours
from wai_relay.observe.outcomes import Outcomes
from wai_relay.observe.pulse import Pulse
from wai_relay.observe.spans import Spans, spans_to
from wai_relay.policy.model_names import ModelNames
from wai_relay.policy.served_names import ServedNames
from wai_relay.port_tls import PortTls
from wai_relay.shares.courier import Courier
from wai_transport.folder import DataFolder
from wai_transport.version import VERSION

from .limits import limits_of
from .stored import Stored


class Parts(msgspec.Struct, frozen=True):
    """The parts of one relay that have a start, an end, or a configuration to follow."""

    edge: Edge
    readiness: Readiness
    fleet: ConnectedFleet
    tunnels: Tunnels
    upstreams: ProvidedFleet
    dispatcher: ScheduledDispatcher
    gateway: Gateway
    cross_origin: CrossOrigin
    pulse: Pulse
    node_hours: NodeHours
    spans: Spans | None
    feed: Feed
    context: Context
    metrics_page: MetricsPage
    access_log: AccessLog
    watch: HealthWatch
    notifier: Notifier
    limits: Courier | None


def build(config: RelayConfig, stored: Stored, tls: PortTls | None) -> Parts:
    """Make the parts and connect them; `tls` is None where a proxy in front ends TLS.

    Raises `WaiError` for a provider or a collector of spans that can't be used as configured.
    """
    fleet = ConnectedFleet(stored.registry, stored.invites, limits=session_limits(config))
    upstreams = ProvidedFleet(fleet, providers_of(config.providers, config.proxies))
    names, served = ModelNames(config.aliases, config.fallbacks), ServedNames()
    dispatcher = ScheduledDispatcher(
        upstreams,
        names=names,
        served=served,
        overflow_after_s=config.provider_after_s,
        first_token_weight=config.routing.first_token_weight,
    )
    fleet.on_change = dispatcher.node_changed
    hardware = HardwareBook()
    node_hours = NodeHours(
        stored.recorder,
        lambda: [
            now_of(node, None if (told := hardware.fresh(node.record.id)) is None else use_of(told))
            for node in fleet.nodes()
        ],
    )
    pulse = Pulse(node_hours)
    recorder: Recorder = (metrics := Metrics(pulse))
    spans: Spans | None = None
    if config.otlp_endpoint is not None:
        recorder = spans = spans_to(config.otlp_endpoint, metrics)
    access_log = AccessLog(outcomes := Outcomes(recorder))
    admission, courier = limits_of(stored)
    gateway = Gateway(
        stored.keys,
        upstreams,
        SettlingDispatcher(dispatcher, fleet),
        access_log,
        config.gateway,
        dialects=installed_dialects(),
        names=names,
        served=served,
        admission=admission,
        correct=stored.recorder.correct,
        spool_folder=config.data,
    )
    gateway.traced = spans is not None
    feed = Feed(
        *(fleet, gateway.live, pulse, stored.audit, stored.keys.name_of),
        hardware=hardware,
        figures=node_hours.rows,
    )

    peers = Peers(
        *(stored.relays, stored.relay_key, stored.admins.knows, config.proxies),
        clock=stored.relays.fleet_time,
    )
    if stored.relays.shared:
        feed.elsewhere = Elsewhere(peers, lambda: stored.admins.local)
        feed.relay_name = lambda: stored.relays.own_name

    def hear(node: Node, name: str, value: Any) -> None:
        feed.deployed.hear(node, name, value)
        hardware.hear(node.record.id, name, value)

    fleet.on_event = hear
    condition = RelayCondition(
        certificate_ends=lambda: tls.ends if tls is not None else None,
        usage=lambda: stored.recorder.state,
        limits=lambda: courier.state if courier is not None else None,
        folder=FolderProbe(
            config.data, None if stored.store.shared else config.data / DATABASE_FILE
        ),
        away=lambda: stored.store.away,
    )
    notifier = Notifier(
        config.notify,
        receivers_of(config.notify, config.proxies),
        DataFolder(config.data),
        lambda: context.public_url,
    )
    health = Health(
        condition,
        nodes=fleet.nodes,
        outcomes=outcomes,
        deployed=feed.deployed.rows.values,
        providers=lambda: upstreams.providers,
        relays=stored.relays,
        known_key=lambda key_id: _known_key(stored, key_id),
        receivers=notifier,
        config=config.health,
    )
    watch = HealthWatch(
        health,
        before=(upstreams.look, lambda: feed.deployed.look(fleet.nodes())),
        told=notifier.look,
    )
    context = _context(
        *(config, stored, tls, fleet, gateway, feed, health, notifier, node_hours, peers)
    )
    page = MetricsPage(
        lambda: metrics.text(
            fleet.nodes(),
            gateway.live,
            edge.counters,
            condition.certificate_ends(),
            condition.usage(),
            watch.counts(),
            [
                (node.name, machine)
                for node in fleet.nodes()
                if node.connected and (machine := hardware.fresh(node.record.id)) is not None
            ],
            condition.limits(),
        ),
        stored.admins.authenticate,
        config.metrics_token,
    )
    readiness = Readiness(fleet.nodes, lambda: stored.relays.drained)
    cross_origin = CrossOrigin(gateway.handle, config.cors)
    app = App(
        cross_origin.handle,
        asgi_handler(lambda: _pages(context)),
        ready=readiness.state,
        usage=lambda: stored.recorder.state.word,
        metrics=page.handle,
        installer=InstallerPages(lambda: _public_address(context)),
    )
    tunnels = Tunnels(
        stored.relay_key, fleet.admit, lambda: tls.served.hashes if tls is not None else None
    )
    edge = Edge(app.handle, tunnel_factory=tunnels.connection)
    edge.proxies = TrustedProxies(config.proxy.trusted, config.proxy.header)
    return Parts(
        edge=edge,
        readiness=readiness,
        fleet=fleet,
        tunnels=tunnels,
        upstreams=upstreams,
        dispatcher=dispatcher,
        gateway=gateway,
        cross_origin=cross_origin,
        pulse=pulse,
        node_hours=node_hours,
        spans=spans,
        feed=feed,
        context=context,
        metrics_page=page,
        access_log=access_log,
        watch=watch,
        notifier=notifier,
        limits=courier,
    )


def _pages(context: Context) -> Application:
    """The admin API and the dashboard."""
    from wai_relay.dashboard.app import create_app  # with Starlette a tenth of a second

    return create_app(context)


def session_limits(config: RelayConfig) -> Limits:
    """What nodes are told when a session begins."""
    return Limits(ping_s=config.ping_s, dead_s=config.dead_s, session_ttl_s=config.session_ttl_s)


def relay_address(
    config: RelayConfig, relay_key: RelayKey, tls: PortTls | None, port: int | None = None
) -> InviteAddress:
    """What invites say of the relay; `port` where the system chose it (listen on 0)."""
    pin = config.proxy_pin if tls is None else None
    if tls is not None and tls.pinned:
        pin = tls.pin
    return InviteAddress(config.invite_url(port), relay_key.public, pin)


def _context(
    config: RelayConfig,
    stored: Stored,
    tls: PortTls | None,
    fleet: ConnectedFleet,
    gateway: Gateway,
    feed: Feed,
    health: Health,
    notifier: Notifier,
    node_hours: NodeHours,
    peers: Peers,
) -> Context:
    return Context(
        fleet=fleet,
        keys=stored.keys,
        invites=stored.invites,
        admins=stored.admins,
        audit=stored.audit,
        settings=stored.settings,
        usage=stored.report,
        history=stored.history,
        months=stored.recorder.months,
        live=gateway.live,
        sign_ins=stored.sign_ins,
        feed=feed,
        explanations=gateway.explanations,
        node_hours=node_hours,
        captures=gateway.captures,
        replays=Replays(gateway.handle, stored.keys),
        address=relay_address(config, stored.relay_key, tls),
        version=VERSION,
        relays=stored.relays,
        peers=peers,
        node_url=config.node_url,
        certificate_hosts=lambda: tls.hosts if tls is not None else frozenset(),
        health=health,
        notifier=notifier,
    )


def _known_key(stored: Stored, key_id: str) -> KnownKey | None:
    found = stored.keys.state_of(key_id)
    return None if found is None else KnownKey(*found)


def _public_address(context: Context) -> InviteAddress:
    """The relay's address, with the URL that an admin has set, if any."""
    return replace(context.address, url=context.public_url)
