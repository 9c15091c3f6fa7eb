"""`wai relay`, once the CLI has read what it was told: builds the parts, runs, drains.

Everything that a running relay consists of is made in `Relay.start` and ended in `Relay.stop`, in
the opposite order; the rules are in the parts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import uvloop

from wai_protocol.errors import StoreError, TransportError, WaiError
from wai_protocol.identity import RelayKey
from wai_protocol.limits import Limits
from wai_transport.folder import DataFolder, FolderLock
from wai_transport.version import VERSION

from .access.admins import Admins
from .access.audit import AuditLog
from .access.keys import KeyRing
from .access.sign_ins import SignIns
from .admin.context import Context
from .admin.events import Feed
from .app import App
from .config import RelayConfig
from .contracts.records import Recorder
from .dashboard.app import create_app
from .database import open_database
from .fleet.invites import Invites, RelayAddress
from .fleet.nodes import ConnectedFleet
from .fleet.providers import ProvidedFleet, providers_of
from .fleet.registry import NodeRegistry
from .fleet.tunnel import Tunnels
from .gateway.dispatch import ScheduledDispatcher
from .gateway.gateway import Gateway
from .gateway.settling import SettlingDispatcher
from .handover import Inheritance, hand_over
from .http.asgi import asgi_handler
from .http.edge import DRAIN_GRACE_S, IDLE_TIMEOUT_S, Edge
from .http.exchange import Exchange
from .http.listener import Listener
from .identity import announce, load_admin_token, load_relay_key, withdraw
from .installer import InstallerPages
from .observe.access_log import AccessLog
from .observe.metrics import Metrics, MetricsPage
from .observe.pulse import Pulse
from .observe.spans import Spans, spans_to
from .policy.admission import Admission
from .policy.model_names import ModelNames
from .port_tls import PortTls
from .reload import LiveConfig, Use
from .service_manager import notify_ready, notify_stopping, passed_sockets
from .settings import SettingsBook
from .storage import SqliteStore
from .usage import UsageRecorder, UsageReport

LOCK_OWNER: Final = "relay"
RECONNECT_IN_S: Final = 1.0
"""What a stopping relay tells its nodes: a service manager has started the next one by then."""

SETTLE_S: Final = 5.0
"""How long after its start a relay waits for a node before it refuses for lack of one: told to dial
at once it needs two round trips, and one that found the relay down tries again within 2 s."""

CATCH_UP_S: Final = 5.0
"""How often a relay that took over looks what the one before it has finished meanwhile: what that
costs a key's month is known so late."""

LAST_WORDS_S: Final = 1.0
"""For the error events of answers that are cut when a drain's bound is over."""

_log = logging.getLogger("wai.relay")


def run(
    config: RelayConfig,
    reread: Callable[[], RelayConfig],
    show_log: Callable[[RelayConfig], None],
) -> None:
    """Run the relay until SIGTERM or SIGINT; then drain. Raises `WaiError` if it can't start.

    `reread` gives the configuration as it is now, for SIGHUP; `show_log` sets up the log as one
    says.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(Relay(config, reread, show_log)))


async def _run(relay: Relay) -> None:
    loop = asyncio.get_running_loop()
    asked, at_once = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (at_once if asked.is_set() else asked).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        await relay.start(Inheritance.find(os.environ), passed_sockets())
        loop.add_signal_handler(signal.SIGUSR2, relay.upgrade, asked)
        loop.add_signal_handler(signal.SIGHUP, relay.reload)
        await asked.wait()
        await relay.drain(at_once)
    finally:
        await relay.stop()


class Relay:
    """A relay: `start` it, `drain` it, `stop` it, once each."""

    def __init__(
        self,
        config: RelayConfig,
        reread: Callable[[], RelayConfig],
        show_log: Callable[[RelayConfig], None],
    ) -> None:
        self._live = LiveConfig(config, reread)
        self._show_log = show_log
        self._folder = DataFolder.open(config.data)
        self._lock: FolderLock | None = None
        self._store: SqliteStore | None = None
        self._recorder: UsageRecorder | None = None
        self._tls: PortTls | None = None
        self._pulse: Pulse | None = None
        self._feed: Feed | None = None
        self._fleet: ConnectedFleet
        self._upstreams: ProvidedFleet | None = None
        self._tunnels: Tunnels | None = None
        self._edge: Edge | None = None
        self._whole = asyncio.Event()
        self._listener: Listener | None = None
        self._spans: Spans | None = None
        self._draining = False
        self._succeeded = False
        self._upgrading: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None

    @property
    def _config(self) -> RelayConfig:
        return self._live.now

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._listener is not None
        return self._listener.addresses[0][1]

    async def start(
        self, inherited: Inheritance | None = None, passed: Sequence[socket.socket] = ()
    ) -> None:
        """Open the data folder and the port, or take them over from a predecessor; `passed` is
        what a service manager has opened in place of `listen`.

        Raises `StoreError`, `TransportError`.
        """
        config, folder = self._config, self._folder
        if inherited is None:
            self._lock = FolderLock.acquire(folder, LOCK_OWNER)
        else:
            self._lock = FolderLock.adopt(inherited.lock)
        self._store = store = open_database(folder)  # before there is a key: see `database`
        relay_key = load_relay_key(folder)
        self._tls = PortTls.load(config, folder, self._announce)
        registry = await NodeRegistry.load(store)
        keys = await KeyRing.load(store)
        settings = await SettingsBook.load(store)
        admins = await Admins.load(store, load_admin_token(folder))
        self._recorder = await UsageRecorder.load(
            store, lambda: settings.now.usage_retention_days * 86400.0, folder.path
        )
        books = self._recorder
        invites = Invites(store, registry)
        self._fleet = ConnectedFleet(registry, invites, limits=_limits(config))
        self._tunnels = Tunnels(relay_key, self._fleet.admit, self._endpoint_hashes)
        upstreams = self._upstreams = ProvidedFleet(self._fleet, providers_of(config.providers))
        names = ModelNames(config.aliases, config.fallbacks)
        dispatcher = ScheduledDispatcher(
            upstreams,
            names=names,
            overflow_after_s=config.provider_after_s,
            first_token_weight=config.routing.first_token_weight,
        )
        self._fleet.on_change = dispatcher.node_changed
        self._pulse = Pulse(self._recorder)
        metrics = Metrics(self._pulse)
        recorder: Recorder = metrics
        if config.otlp_endpoint is not None:
            recorder = self._spans = spans_to(config.otlp_endpoint, metrics)
        gateway = Gateway(
            keys,
            upstreams,
            SettlingDispatcher(dispatcher, self._fleet),
            AccessLog(recorder),
            config.gateway,
            names=names,
            admission=Admission(self._recorder.months),
            correct=self._recorder.correct,
        )
        if inherited is not None:
            passed = [socket.socket(fileno=descriptor) for descriptor in inherited.listening]
        gateway.traced = self._spans is not None
        listener = await self._listen(passed)
        audit = AuditLog(store)
        self._pulse.start(gateway.live)
        self._feed = Feed(self._fleet, gateway.live, self._pulse, audit, keys.name_of)
        self._fleet.on_event = self._feed.deployed.hear
        context = Context(
            *(self._fleet, keys, invites, admins, audit, settings),
            *(UsageReport(store), gateway.live),
            sign_ins=await SignIns.load(store, admins),
            feed=self._feed,
            explanations=gateway.explanations,
            address=self._address(config, relay_key),
            version=VERSION,
        )
        assert self._edge is not None
        edge, tls = self._edge, self._tls
        page = MetricsPage(
            lambda: metrics.text(
                self._fleet.nodes(),
                gateway.live,
                edge,
                tls.ends if tls is not None else None,
                books.state,
            ),
            admins,
            config.metrics_token,
        )
        edge.handler = App(
            gateway.handle,
            asgi_handler(create_app(context)),
            ready=self._readiness,
            usage=lambda: books.state.word,
            metrics=page.handle,
            installer=InstallerPages(
                lambda: replace(context.address, url=settings.now.public_url or context.address.url)
            ),
        ).handle
        self._whole.set()
        self._announce()
        self._live.parts.append(lambda new: upstreams.prepare(new.providers))
        if self._tls is not None:
            self._live.parts.append(self._tls.prepare)
            self._tls.start()

        def prepare(new: RelayConfig) -> Use:
            names = ModelNames(new.aliases, new.fallbacks)

            def use() -> None:
                self._show_log(new)
                self._fleet.limits = _limits(new)
                gateway.configure(new.gateway, names)
                weight = new.routing.first_token_weight
                dispatcher.configure(names, new.provider_after_s, weight)
                page.token = new.metrics_token
                context.address = self._address(new, relay_key)

            return use

        def prepare_token(_: RelayConfig) -> Use:
            token = load_admin_token(folder)
            return lambda: admins.replace_local(token)

        self._live.parts.extend((prepare, prepare_token))
        self._fleet.expect_all(SETTLE_S)
        if inherited is not None:
            inherited.tell_ready()
            following = self._follow_predecessor(self._recorder)
            self._following = asyncio.get_running_loop().create_task(following)
        notify_ready()
        hosts = " and ".join(host for host, _ in listener.addresses)
        _log.info("relay ready on %s (listening on %s)", config.local_url(self.port), hosts)

    async def _follow_predecessor(self, recorder: UsageRecorder) -> None:
        """Count for this month's limits what the relay before us still finishes."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._config.drain_timeout_s + CATCH_UP_S
        while loop.time() < until:
            await asyncio.sleep(CATCH_UP_S)
            try:
                await recorder.catch_up()
            except StoreError as error:
                _log.warning("what the relay before this one counts is not known: %s", error)

    def _announce(self) -> None:
        """Let commands on this machine find us, also by a certificate that is not for loopback."""
        pin = self._tls.pin if self._tls is not None else None
        try:
            announce(self._folder, self._config.local_url(self.port), pin)
        except StoreError as error:  # callers and nodes do not need it
            _log.warning("commands on this machine will not find this relay: %s", error)

    async def _wait_until_whole(self, exchange: Exchange) -> None:
        """For whoever comes while the relay starts; some came before it, to a service manager."""
        await self._whole.wait()
        assert self._edge is not None
        await self._edge.handler(exchange)

    async def _listen(self, socks: Sequence[socket.socket]) -> Listener:
        """Open the port. Until everything is there nobody is answered."""
        assert self._tunnels is not None
        self._edge = Edge(self._wait_until_whole, tunnel_factory=self._tunnels.connection)
        self._listener = Listener(self._edge)
        host, port = self._config.address
        try:
            context = self._tls.context if self._tls is not None else None
            await self._listener.open(host=host, port=port, tls=context, socks=socks)
        except OSError as error:
            known = (error.errno or 0) > 0  # else a name's, which has no text of the system's
            reason = os.strerror(error.errno or 0) if known else error.strerror
            raise TransportError(
                f"can't listen on {self._config.listen}: {reason}."
                " Choose another address with --listen HOST:PORT"
            ) from error
        return self._listener

    def _endpoint_hashes(self) -> frozenset[bytes] | None:
        """What a node that is connected to us directly has seen as our certificate."""
        if self._tls is None:
            return None
        return self._tls.served.hashes

    def _readiness(self) -> tuple[str | None, int]:
        ready = sum(1 for node in self._fleet.nodes() if node.ready)
        if self._draining:
            return "draining", ready
        return (None if ready else "no node is ready"), ready

    def reload(self) -> None:
        """Read the configuration again, and the files that it names; no connection notices."""
        if not self._draining:
            self._live.reload()

    def _address(self, config: RelayConfig, relay_key: RelayKey) -> RelayAddress:
        """What invites say of us."""
        pin = config.proxy_pin if self._tls is None else None
        if self._tls is not None and self._tls.pinned:
            pin = self._tls.pin
        return RelayAddress(config.invite_url(self.port), relay_key.public, pin)

    def upgrade(self, done: asyncio.Event) -> None:
        """Start a successor; once it accepts, `done` is set, and it is for us to drain."""
        if self._upgrading is None or self._upgrading.done():
            self._upgrading = asyncio.get_running_loop().create_task(self._upgrade(done))

    async def _upgrade(self, done: asyncio.Event) -> None:
        assert self._listener is not None
        assert self._lock is not None
        _log.info("upgrade: starting a new relay")
        try:
            pid = await hand_over(self._listener.descriptors, self._lock.fileno())
        except WaiError as error:
            self._lock.sign()  # the one that failed may have written its own process id
            _log.error("upgrade failed, this relay goes on: %s", error)
            return
        _log.info("upgrade: the new relay, process %d, has taken over", pid)
        self._succeeded = True
        done.set()

    async def drain(self, at_once: asyncio.Event) -> None:
        """Stop accepting, tell the nodes, let what is in flight end; `at_once` cuts that short."""
        assert self._listener is not None
        assert self._edge is not None
        self._draining = True
        notify_stopping(succeeded=self._succeeded)
        edge = self._edge
        if self._tls is not None:
            await self._tls.close()  # a successor renews from now on
        _log.info("stopping: %d requests in flight", edge.serving)
        await self._listener.close()
        if self._feed is not None:
            self._feed.close()  # whoever watches has no request to wait for
        # With a successor nodes dial now, and an idle caller's next request has time to come.
        reconnect_in_s = 0.0 if self._succeeded else RECONNECT_IN_S
        idle_s = IDLE_TIMEOUT_S if self._succeeded else DRAIN_GRACE_S
        self._fleet.go_away("the relay is stopping", reconnect_in_s=reconnect_in_s)
        loop = asyncio.get_running_loop()
        bound_s = self._config.drain_timeout_s
        drained = loop.create_task(edge.drain(bound_s + LAST_WORDS_S, idle_s=idle_s))
        hurried = loop.create_task(at_once.wait())
        await asyncio.wait((drained, hurried), timeout=bound_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not drained.done():
            self._fleet.close()  # what is cut now is told so, in an event of its stream
            await asyncio.wait((drained,), timeout=LAST_WORDS_S)
        if not drained.done():
            drained.cancel()
            await asyncio.wait((drained,))
            await edge.drain(0.0)

    async def stop(self) -> None:
        """End everything that is still there. Safe after a `start` that failed half-way."""
        if self._tls is not None:
            await self._tls.close()
        if self._listener is not None:
            await self._listener.close()
        if self._tunnels is not None:
            await self._tunnels.close()
            self._fleet.close()
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait((self._following,))
        if self._upstreams is not None:
            await self._upstreams.aclose()
        if self._spans is not None:
            await asyncio.to_thread(self._spans.close)
        if self._pulse is not None:
            self._pulse.close()
        if self._recorder is not None:
            await self._recorder.close()
        if self._store is not None:
            await self._store.close()
        if self._lock is not None:
            withdraw(self._folder)
            self._lock.release()


def _limits(config: RelayConfig) -> Limits:
    """What nodes are told when a session begins."""
    return Limits(ping_s=config.ping_s, dead_s=config.dead_s, session_ttl_s=config.session_ttl_s)
