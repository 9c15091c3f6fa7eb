"""A relay's life: everything is opened in one order and closed in the opposite one.

What a relay consists of is in `parts`; who reads the configuration and hears of signals is `main`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from typing import Final

from wai_protocol.errors import StoreError, TransportError
from wai_relay.access.sign_in_links import sign_in_url
from wai_relay.config import RelayConfig
from wai_relay.database import open_store
from wai_relay.http.edge import DRAIN_GRACE_S, IDLE_TIMEOUT_S
from wai_relay.http.listener import Listener
from wai_relay.identity import announce, withdraw
from wai_relay.observe.past_steps import HOUR_S
from wai_relay.observe.pulse import MAX_PAST
from wai_relay.port_tls import PortTls
from wai_relay.storage import Housekeeping, Store
from wai_relay.usage import UsageRecorder
from wai_transport.folder import DataFolder, FolderLock

from .followers import followers
from .parts import Parts, build, relay_address
from .reload import LiveConfig
from .service_manager import notify_ready, notify_stopping
from .sharing import Sharing, shared_certificate, sharing_of
from .stored import Stored
from .succession import Inheritance, Succession

LOCK_OWNER: Final = "relay"
RECONNECT_IN_S: Final = 1.0
"""What a stopping relay tells its nodes: a service manager has started the next one by then."""

SETTLE_S: Final = 5.0
"""How long after its start a relay waits for a node before it refuses for lack of one: told to dial
at once it needs two round trips, and one that found the relay down tries again within 2 s."""

CATCH_UP_S: Final = 5.0
"""How often a relay that took over looks what the one before it has finished meanwhile: what that
costs a key's month is known so late."""

LOAD_REST_AFTER_S: Final = 10.0
"""How long after its start a relay loads what it did not need for it. It does not wait for somebody
to need it: an installer may put another version's files in the place of ours meanwhile."""

LOADED_LATER: Final = ("wai_relay.dashboard.app", "wai_relay.http.h2")

LAST_WORDS_S: Final = 1.0
"""For the error events of answers that are cut when a drain's bound is over."""

_log = logging.getLogger("wai.relay")


@asynccontextmanager
async def open_relay(
    live: LiveConfig,
    show_log: Callable[[RelayConfig], None],
    *,
    stop: asyncio.Event,
    inherited: Inheritance | None = None,
    passed: Sequence[socket.socket] = (),
) -> AsyncIterator[Relay]:
    """A relay whose port is open, until the end of the block, where all that it opened is closed.

    `inherited` is what a predecessor passed down, `passed` the sockets that a service manager has
    opened in place of `listen`. `stop` is set when the relay is to stop, also from here once a
    successor has taken over. Raises `WaiError` if the folder, the configuration or the port can't
    be used.
    """
    config = live.now
    folder = DataFolder.open(config.data)
    async with AsyncExitStack() as ending:
        if inherited is None:
            lock = FolderLock.acquire(folder, LOCK_OWNER)
        else:
            lock = FolderLock.adopt(inherited.lock)
            passed = [socket.socket(fileno=descriptor) for descriptor in inherited.listening]
        ending.callback(_leave, folder, lock)
        store = await open_store(folder, config.postgres)  # before there is a key: see `database`
        ending.push_async_callback(store.close)
        shared = await shared_certificate(config, store, folder)
        # Another certificate is shown at the earliest after `tls.start`, when there is a `relay`.
        tls = PortTls.load(config, folder, lambda: relay.announce())
        housekeeping = Housekeeping(store)
        if tls is not None and shared is not None:
            tls.shared, tls.renews = shared, lambda: housekeeping.ours
        ending.push_async_callback(housekeeping.close)
        stored = await Stored.load(store, folder, housekeeping)
        ending.push_async_callback(stored.recorder.close)
        parts = build(config, stored, tls)
        _close_at_the_end(parts, ending)
        listener = Listener(parts.edge)
        ending.push_async_callback(listener.abandon)
        sharing = await _open_port(listener, parts, store, stored, tls, config, passed, ending)
        if sharing is not None:  # nodes dial as soon as they are told
            ending.push_async_callback(sharing.close, succeeded=True)
            await sharing.start(succeeds=inherited is not None)
        parts.watch.start()
        succession = Succession(lambda: listener.descriptors, lock, stop)
        ending.push_async_callback(succession.end)
        relay = Relay(live, folder, parts, listener, tls, succession, sharing)
        live.parts += followers(*(parts, stored, tls, folder), port=relay.port, show_log=show_log)
        if tls is not None:
            tls.settings_url = lambda: stored.settings.now.public_url
            ending.push_async_callback(tls.close)
            tls.start()
        housekeeping.start()
        loop = asyncio.get_running_loop()
        loading = loop.call_later(LOAD_REST_AFTER_S, loop.run_in_executor, None, load_rest)
        ending.callback(loading.cancel)
        if inherited is not None:
            following = loop.create_task(
                _follow_predecessor(stored.recorder, config.drain_timeout_s)
            )
            ending.push_async_callback(_cancel, following)
        yield relay


def load_rest() -> None:
    """Load what few callers need, 0.1 s of CPU time; in a thread, so that no stream waits."""
    for name in LOADED_LATER:
        import_module(name)


def _close_at_the_end(parts: Parts, ending: AsyncExitStack) -> None:
    """Have `ending` close what `build` made, tunnels first and the sampling of requests last."""
    ending.callback(parts.pulse.close)
    ending.callback(parts.node_hours.close)
    ending.callback(parts.gateway.captures.close)
    ending.callback(parts.access_log.close)
    if parts.limits is not None:
        ending.push_async_callback(parts.limits.close)
    if parts.spans is not None:
        ending.push_async_callback(asyncio.to_thread, parts.spans.close)
    ending.push_async_callback(parts.upstreams.aclose)
    ending.callback(parts.fleet.close)
    ending.push_async_callback(parts.tunnels.close)
    ending.push_async_callback(parts.context.peers.aclose)
    ending.callback(parts.feed.close)
    ending.push_async_callback(parts.notifier.close)
    ending.push_async_callback(parts.watch.close)


async def _open_port(
    listener: Listener,
    parts: Parts,
    store: Store,
    stored: Stored,
    tls: PortTls | None,
    config: RelayConfig,
    socks: Sequence[socket.socket],
    ending: AsyncExitStack,
) -> Sharing | None:
    """Take the port, and accept once the parts know its number; return what tells the others.

    Raises `TransportError`, `StoreError`.
    """
    host, port = config.address
    context = tls.context if tls is not None else None
    try:
        shared = config.shared_address
        await listener.bind(host=host, port=port, tls=context, socks=socks, shared=shared)
        parts.context.address = relay_address(
            config, stored.relay_key, tls, listener.addresses[0][1]
        )
        await _remember_the_hour(parts, stored)
        sharing = sharing_of(store, stored, parts, tls, port=listener.addresses[0][1])
        parts.pulse.start(parts.gateway.live)
        parts.node_hours.start(parts.gateway.live)
        parts.fleet.expect_all(SETTLE_S)
        if parts.limits is not None:
            parts.limits.start()
        await listener.start()
    except OSError as error:
        known = (error.errno or 0) > 0  # else a name's, which has no text of the system's
        reason = os.strerror(error.errno or 0) if known else error.strerror
        raise TransportError(
            f"can't listen on {config.listen}: {reason}."
            " Choose another address with --listen HOST:PORT"
        ) from error
    return sharing


async def _remember_the_hour(parts: Parts, stored: Stored) -> None:
    """Begin the last hour's figures with what the relay before us finished."""
    try:
        past = await stored.history.past(time.time() - HOUR_S, MAX_PAST, stored.recorder.relay)
    except StoreError as error:
        _log.warning("what was in the last hour is not known: %s", error)
        return
    parts.pulse.restore(past)
    parts.node_hours.restore(past)


def _leave(folder: DataFolder, lock: FolderLock) -> None:
    withdraw(folder)
    lock.release()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))


async def _follow_predecessor(recorder: UsageRecorder, drain_timeout_s: float) -> None:
    """Count for this month's limits what the relay before us still finishes."""
    loop = asyncio.get_running_loop()
    until = loop.time() + drain_timeout_s + CATCH_UP_S
    while loop.time() < until:
        await asyncio.sleep(CATCH_UP_S)
        try:
            await recorder.catch_up()
        except StoreError as error:
            _log.warning("what the relay before this one counts is not known: %s", error)


class Relay:
    """A relay whose port is open. Made by `open_relay`; `take_over`, then `drain`, once each."""

    def __init__(
        self,
        live: LiveConfig,
        folder: DataFolder,
        parts: Parts,
        listener: Listener,
        tls: PortTls | None,
        succession: Succession,
        sharing: Sharing | None,
    ) -> None:
        self._live = live
        self._folder = folder
        self._parts = parts
        self._listener = listener
        self._tls = tls
        self._succession = succession
        self._sharing = sharing
        self.port = listener.addresses[0][1]
        """The port that it listens on."""

    def take_over(self, inherited: Inheritance | None) -> None:
        """Tell everybody that this process is the relay now: commands on this machine, the
        predecessor, the service manager."""
        self.announce()
        if inherited is not None:
            inherited.tell_ready()
        notify_ready()
        url = self._live.now.local_url(self.port)
        hosts = " and ".join(host for host, _ in self._listener.addresses)
        _log.info("relay ready on %s (listening on %s)", url, hosts)
        if self._tls is not None and (trusted := self._tls.trusted_file) is not None:
            _log.info("callers must trust the certificate in %s", trusted)

    async def sign_in_link(self) -> str:
        """Return a link that opens the dashboard on this machine, signed in as its local admin."""
        context = self._parts.context
        secret, _ = await context.sign_ins.links.make(context.admins.local)
        return sign_in_url(self._live.now.local_url(self.port), secret)

    def announce(self) -> None:
        """Let commands on this machine find us, also by a certificate that is not for loopback."""
        pin = self._tls.pin if self._tls is not None else None
        try:
            announce(self._folder, self._live.now.local_url(self.port), pin)
        except StoreError as error:  # callers and nodes do not need it
            _log.warning("commands on this machine will not find this relay: %s", error)

    def reload(self) -> None:
        """Read the configuration again, and the files that it names; no connection notices."""
        if not self._parts.readiness.draining:
            self._live.reload()

    def upgrade(self) -> None:
        """Start a successor; see `Succession`."""
        self._succession.begin()

    async def drain(self, at_once: asyncio.Event) -> None:
        """Stop accepting, tell the nodes, let what is in flight end; `at_once` cuts that short."""
        parts = self._parts
        parts.readiness.draining = True
        succeeded = self._succession.taken_over
        notify_stopping(succeeded=succeeded)
        await self._succession.end()
        if self._tls is not None:
            await self._tls.close()  # a successor renews from now on
        if self._sharing is not None:
            await self._sharing.close(succeeded=succeeded)
        await parts.watch.close()
        await parts.notifier.close()  # what is not there any more is no problem of this relay's
        _log.info("stopping: %d requests in flight", parts.edge.serving)
        await self._listener.close()
        parts.feed.close()  # whoever watches has no request to wait for
        # With a successor nodes dial now, and an idle caller's next request has time to come.
        reconnect_in_s = 0.0 if succeeded else RECONNECT_IN_S
        parts.fleet.go_away("the relay is stopping", reconnect_in_s=reconnect_in_s)
        await self._finish_requests(at_once, idle_s=IDLE_TIMEOUT_S if succeeded else DRAIN_GRACE_S)

    async def _finish_requests(self, at_once: asyncio.Event, *, idle_s: float) -> None:
        """Return when no request is in flight: the rest is cut after `drain_timeout_s`, or when
        `at_once` is set."""
        edge, loop = self._parts.edge, asyncio.get_running_loop()
        bound_s = self._live.now.drain_timeout_s
        drained = loop.create_task(edge.drain(bound_s + LAST_WORDS_S, idle_s=idle_s))
        hurried = loop.create_task(at_once.wait())
        await asyncio.wait((drained, hurried), timeout=bound_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not drained.done():
            self._parts.fleet.close()  # what is cut now is told so, in an event of its stream
            await asyncio.wait((drained,), timeout=LAST_WORDS_S)
        if not drained.done():
            drained.cancel()
            await asyncio.wait((drained,))
            await edge.drain(0.0)
