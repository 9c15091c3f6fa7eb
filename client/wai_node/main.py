"""`wai node join` and `wai node run`, once the CLI has read what they were told."""

from __future__ import annotations

import asyncio
import logging
import platform
import secrets
import signal
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import anyio
import uvloop

from wai_protocol.errors import TransportError
from wai_protocol.handshake import MAX_TEXT_CHARS, Hello
from wai_protocol.identity import NONCE_BYTES, NodeKey, inference_key
from wai_protocol.invite import Invite, secret_sha256
from wai_protocol.invite import decode as decode_invite
from wai_protocol.known_relay import KnownRelay
from wai_protocol.limits import Limits
from wai_protocol.relay_list import METHOD as RELAYS_LIST
from wai_protocol.relay_list import RelayList
from wai_protocol.surface import RouteTable, extra_route
from wai_transport.folder import DataFolder, FolderLock
from wai_transport.heap import settle_heap
from wai_transport.http_proxy import ProxySettings
from wai_transport.origin import Origin
from wai_transport.version import VERSION

from .agent import Agent
from .config import JoinConfig, NodeConfig
from .installed_routes import installed_routes
from .managed.calls import EVENT as DEPLOYMENT_EVENT
from .managed.calls import ModelCalls, deployment_map
from .managed.entry import DeploymentEvent
from .managed.news import DeploymentNews
from .managed.policy import ManagedSettings
from .managed.pulls.pulls import Pulls
from .managed.serving import ManagedModels
from .managed.supervisor import Supervisor
from .membership import Membership, joined_by, keep_membership, load_key, load_membership
from .models.hardware import describe, detect_hardware
from .models.hub import Hub, HubSettings
from .models.sampler import Looker, Sampler, watch_seconds
from .relays import forget_relays, keep_relays, load_relays
from .standing import keep_standing
from .tunnel.dial import Connected, RelayAddress, dial
from .tunnel.goodbye import say_goodbye
from .upstreams.consent import Consent
from .upstreams.detect import find_upstreams, upstream_at
from .upstreams.kinds import UpstreamKinds, installed_kinds
from .upstreams.upstream import Upstream

LOCK_OWNER: Final = "node"

_log = logging.getLogger("wai.node")


def join(config: JoinConfig) -> Membership:
    """Enrol with an invite and write down where we belong. Raises `WaiError`.

    A node that has joined by this very invite is left alone: a second connection would end what
    its running process has open.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_join(config))


async def _join(config: JoinConfig) -> Membership:
    invite = decode_invite(config.invite)
    folder = DataFolder.open(config.data)
    digest = secret_sha256(invite.secret).hex()
    if (kept := joined_by(folder, digest)) is not None:
        return kept
    key = load_key(folder)
    hello = Hello(
        *(key.public, config.name or "", b""),
        agent=f"wai/{VERSION}",
        instance="join",
        host=_host_name(),
    )
    relay, connected = await _redeem(config, invite, key, hello)
    await say_goodbye(connected, "it has joined")
    welcome = connected.welcome
    membership = Membership(
        url=relay.url,
        relay_public=relay.public,
        pin=relay.pin,
        dial=relay.dial,
        node_id=welcome.node_id,
        name=welcome.name,
        allow_deploy=config.allow_deploy,
        invite=digest,
    )
    forget_relays(folder)  # of another fleet
    keep_membership(folder, membership)
    return membership


async def _redeem(
    config: JoinConfig, invite: Invite, key: NodeKey, hello: Hello
) -> tuple[KnownRelay, Connected]:
    """Ask the invite's relays one after the other, until one can be reached. Raises `WaiError`:
    what the first one was asked for in vain, or that one refused."""
    first: TransportError | None = None
    for relay in invite.relays:
        try:
            address = _address(config, relay, config.relay or relay.dial)
            return relay, await dial(address, key, hello, invite.secret)
        except TransportError as error:
            first = first or error
            _log.info("%s: %s", relay.url, error)
    assert first is not None
    raise first


def run(config: NodeConfig) -> None:
    """Run the node until SIGTERM or SIGINT; then drain. Raises `WaiError` if it can't start."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(config))


async def _run(config: NodeConfig) -> None:
    folder = DataFolder.open(config.data)
    membership = load_membership(folder)
    key = load_key(folder)
    lock = FolderLock.acquire(folder, LOCK_OWNER)
    try:
        kinds = installed_kinds()
        agent = await _make_agent(config, folder, membership, key, kinds)
        models = _make_models(config, membership, key, agent, kinds)
        await _until_stopped(agent, models, config.drain_timeout_s)
    finally:
        lock.release()


async def _make_agent(
    config: NodeConfig,
    folder: DataFolder,
    membership: Membership,
    key: NodeKey,
    kinds: UpstreamKinds,
) -> Agent:
    home = KnownRelay(membership.url, membership.relay_public, membership.pin, membership.dial)
    address = _address(config, home, config.relay or home.dial)
    given: list[Upstream] = [
        await upstream_at(
            *(one.url, one.key or "", kinds),
            slots=one.slots,
            extra=tuple(map(extra_route, one.extra)),
        )
        for one in config.upstreams
    ]

    consent = Consent(config.data)

    async def discover(known: frozenset[int]) -> list[Upstream]:
        return await find_upstreams(consent, kinds=kinds, except_for=known, on_waiting=tell_waiting)

    def tell_waiting(waiting: list[str]) -> None:
        agent.watch.tell("waiting", waiting)

    def reach(relay: KnownRelay) -> RelayAddress:
        return _address(config, relay, relay.dial)

    agent = Agent(
        address,
        key,
        membership.name,
        version=VERSION,
        tunnels=config.tunnels,
        given=given,
        discover=None if given else discover,
        detail={
            "os": platform.system(),
            "machine": platform.machine(),
            **describe(await asyncio.to_thread(detect_hardware)),
        },
        limits=Limits(ping_s=config.ping_s, dead_s=config.dead_s),
        routes=_routes(given),
        on_standing=partial(keep_standing, folder),
        known=load_relays(folder),
        reach=reach,
        keep_relays=partial(keep_relays, folder),
    )
    return agent


def _routes(given: list[Upstream]) -> RouteTable:
    """What this node forwards: to whichever server, and what its owner adds for some. A server gets
    no route that was added for another one. Raises `RequestError` for a route that all have."""
    extra = {(route.method, route.path): route for one in given for route in one.extra}
    return installed_routes().extended(extra.values())


class _Models(NamedTuple):
    """What deploys models, on servers of the node's own and on those that are there, and what tells
    how busy the machine is."""

    supervisor: Supervisor
    pulls: Pulls
    sampler: Sampler


def _make_models(
    config: NodeConfig, membership: Membership, key: NodeKey, agent: Agent, kinds: UpstreamKinds
) -> _Models:
    """What runs the deployed models, joined to the agent: its upstreams, calls and events."""
    deploy = config.deploy
    settings = ManagedSettings(
        folder=config.data / "managed",
        models_folder=deploy.models_folder or config.data / "models",
        server=deploy.server,
        extra_flags=deploy.server_flags,
        threads=deploy.threads,
        load_timeout_s=deploy.load_timeout_s,
        engine=deploy.engine,
        engine_mirror=config.engine_mirror,
        engine_manifest=deploy.engine_manifest,
        proxies=_proxies(config),
        allow_engine_flags=deploy.allow_engine_flags,
        allow_environment=deploy.allow_environment,
        file_folders=deploy.folders,
        allow_deploy=deploy.allow and membership.allow_deploy,
        allowed_publishers=frozenset(deploy.publishers) or None,
        disk_quota_bytes=None
        if deploy.disk_quota_gib is None
        else int(deploy.disk_quota_gib * (1 << 30)),
    )
    managed = ManagedModels(agent.watch)
    news = DeploymentNews(lambda s: agent.tell(DEPLOYMENT_EVENT, deployment_map(s)))

    def new_key() -> str:
        return inference_key(key, secrets.token_bytes(NONCE_BYTES))

    def on_event(event: DeploymentEvent) -> None:
        managed.on_event(supervisor, event)
        news.update(event.status)

    hub = Hub(HubSettings(config.hf_endpoint, config.hf_token, _proxies(config)))
    supervisor = Supervisor(
        *(settings, hub, new_key, on_event),
        parts=agent.parts,
        on_engine=lambda state: agent.tell_engine(state.detail(), state.problem),
    )
    pulls = Pulls(
        *(settings, agent.board, kinds),
        on_change=news.update,
        tell_failed=managed.tell_failure,
        touch=agent.watch.touch,
        own_bytes=supervisor.bytes_on_disk,
    )
    supervisor.other_bytes = pulls.bytes_on_disk
    sampler = Sampler(*(Looker(), supervisor.processes, agent.tell), wanted=lambda: agent.connected)
    calls = ModelCalls(supervisor, pulls)

    async def answer(method: str, params: dict[str, Any], tell: Callable[[str, Any], None]) -> Any:
        if method == "hardware.watch":
            sampler.watch(watch_seconds(params))
            return None
        if method == RELAYS_LIST:
            agent.follow_relays(RelayList.from_map(params))
            return None
        return await calls.answer(method, params, tell)

    agent.calls.handler = answer
    return _Models(supervisor, pulls, sampler)


async def _work(agent: Agent, models: _Models) -> None:
    """Serve until cancelled. Managed models are known before the relay is told what is served."""
    brought_back = asyncio.Event()
    try:
        agent.parts.start("managed models", partial(_keep_models, models.supervisor, brought_back))
        await brought_back.wait()
        agent.parts.start("models on servers that are there", models.pulls.run)
        agent.parts.start("hardware", models.sampler.run)
        settle_heap()
        await agent.run()
    finally:
        await agent.parts.aclose()


async def _keep_models(supervisor: Supervisor, brought_back: asyncio.Event) -> None:
    """Run the managed models; `brought_back` is set once that was done, or has failed."""
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(supervisor.run)
            brought_back.set()
    finally:
        brought_back.set()


async def _until_stopped(agent: Agent, models: _Models, drain_timeout_s: float) -> None:
    """Run the node until a signal, drain it, and stop it; a second signal stops at once."""
    loop = asyncio.get_running_loop()
    asked, at_once = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (at_once if asked.is_set() else asked).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    work = loop.create_task(_work(agent, models))
    stop = loop.create_task(asked.wait())
    try:
        await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            _log.info("stopping: %d streams in flight", agent.forwarder.active_streams)
            await _drain(agent, drain_timeout_s, at_once)
    finally:
        stop.cancel()
        work.cancel()
        await asyncio.wait((work,))
    if not work.cancelled() and (error := work.exception()) is not None:
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error


async def _drain(agent: Agent, bound_s: float, at_once: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    drain = loop.create_task(agent.drain(bound_s))
    hurry = loop.create_task(at_once.wait())
    try:
        await asyncio.wait((drain, hurry), return_when=asyncio.FIRST_COMPLETED)
    finally:
        drain.cancel()
        hurry.cancel()
        await asyncio.wait((drain, hurry))


def _host_name() -> str:
    """The name of this machine, as far as HELLO can carry it."""
    return "".join(filter(str.isprintable, platform.node()))[:MAX_TEXT_CHARS]


def _address(config: JoinConfig | NodeConfig, relay: KnownRelay, instead: str) -> RelayAddress:
    """The way to a relay, or to the HOST:PORT `instead`. Raises `RequestError` for a proxy that is
    none."""
    proxy = _proxies(config).to(Origin.parse(relay.url)[0])
    return RelayAddress(relay.url, relay.public, relay.pin, _host_port(instead), proxy)


def _proxies(config: JoinConfig | NodeConfig) -> ProxySettings:
    return ProxySettings(config.https_proxy, config.no_proxy)


def _host_port(address: str) -> tuple[str, int] | None:
    """ "HOST:PORT" or "[HOST]:PORT" as a pair, None for ""; it was checked where it was read."""
    if not address:
        return None
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
