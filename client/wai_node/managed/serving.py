"""Present each deployed model to the node as an upstream like any other.

The server of a model changes (context swap, restart, loading after an idle time), so each request
takes a lease, and waits with it for a server that is loading. This module follows the events of the
supervisor, which decides what is deployed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import ClassVar, Final

from msgspec.structs import replace

from wai_node.upstreams.llama_server import LlamaServerUpstream
from wai_node.upstreams.upstream import Probe, Ready, Upstream, Waited
from wai_node.upstreams.vllm import VllmUpstream
from wai_node.upstreams.watch import Watch
from wai_protocol.errors import WaiError
from wai_protocol.status import FAILED_MODELS, ModelStatus
from wai_protocol.surface import Route
from wai_transport.origin import Origin

from .deployment import State
from .entry import DeploymentEvent, DeploymentStatus, ServerAccess
from .server.vllm import SERVER
from .supervisor import Supervisor

_AWAKE_SOON: Final = frozenset({State.READY, State.ASLEEP})
"""States in which requests are accepted: answered now, or as soon as the model is loaded."""

_SWAPPING: Final = frozenset({State.STARTING, State.DRAINING, State.STOPPING})
"""Also accepted in these, if the model served before: its context is changed, or it restarts."""


MAX_TOLD_FAILURES: Final = 32  # with their reasons at most 20 KiB of the 64 that a detail may have
MAX_REASON_CHARS: Final = 300

_log = logging.getLogger("wai.node.managed")


class ManagedUpstream(Upstream):
    """The upstream of one deployed model. A lease names the server and its key."""

    kind: ClassVar[str] = LlamaServerUpstream.kind
    apis: tuple[str, ...] = LlamaServerUpstream.apis
    capabilities: tuple[str, ...] = LlamaServerUpstream.capabilities
    server: ClassVar[type[Upstream]] = LlamaServerUpstream

    def __init__(self, alias: str, supervisor: Supervisor) -> None:
        self.alias = alias
        self.origin = Origin("http", "127.0.0.1", 0)
        self.base_path = self.key = ""
        self._supervisor = supervisor
        self._servers: dict[str, Upstream] = {}
        self._leases: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._unserved: set[asyncio.Task[None]] = set()  # that wait for a server
        self._has_served = False

    @property
    def name(self) -> str:
        """The upstream's name in STATUS."""
        return f"{self.kind}@managed/{self.alias}"[:256]

    async def probe(self) -> Probe:
        """Return what the server says of itself, or, while none runs, what is wanted of it."""
        endpoint = self._supervisor.serving().get(self.alias)
        if endpoint is not None:
            self._has_served = True
            told = await self._server(endpoint).probe()
            status = self._status()
            models = tuple(
                self._in_memory(
                    replace(m, id=self.alias, upstream=self.name), status, waits=endpoint.closing
                )
                for m in told.models[:1]
            )
            await self._close_unused_servers()
            counters = told.counters
            if counters is not None:
                counters = counters._replace(server=endpoint.url)
            return replace(told, models=models, counters=counters, process=endpoint.url)
        status = self._status()
        if status is None or status.given_up:  # `ManagedModels` tells why it failed
            return Probe(())
        return Probe((self._wanted(status),))

    def _in_memory(
        self, model: ModelStatus, status: DeploymentStatus | None, *, waits: bool
    ) -> ModelStatus:
        """Say whether a new request has to wait for a load, and how long that takes."""
        if status is None:
            return model
        load_ms = round(status.load_s * 1000) if waits else None
        alias = status.options.alias
        return replace(
            model,
            loaded=not waits,
            load_ms=load_ms,
            size_bytes=status.size_bytes,
            aliases=(alias,) if alias else (),
        )

    def _status(self) -> DeploymentStatus | None:
        return next((s for s in self._supervisor.deployed() if s.alias == self.alias), None)

    async def find_routes(self, routes: Iterable[Route]) -> frozenset[str] | None:
        """Ask the server that runs now."""
        endpoint = self._supervisor.serving().get(self.alias)
        return None if endpoint is None else await self._server(endpoint).find_routes(routes)

    def told_ready(self, status: DeploymentStatus) -> Probe:
        """What it serves from now on, before its server was asked."""
        self._has_served = True
        return Probe((self._wanted(status),))

    def _wanted(self, status: DeploymentStatus) -> ModelStatus:
        served = self._has_served or status.wakes
        welcome = status.state in _AWAKE_SOON or (served and status.state in _SWAPPING)
        told = replace(
            self.model(self.alias),
            ready=welcome,
            context_tokens=status.context_served or status.context_tokens,
            slots_total=status.slots,
        )
        return self._in_memory(told, status, waits=status.state is not State.READY)

    def lease(
        self,
        ready: Ready,
        failed: Callable[[WaiError], None],
        told: Callable[[Waited], None] = lambda waited: None,
    ) -> Callable[[], None]:
        """Take a lease, as `Upstream.lease` says; loads the model if it was unloaded."""
        over = asyncio.Event()
        task = asyncio.get_running_loop().create_task(self._hold(over, ready, failed, told))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def end() -> None:
            over.set()
            if task in self._unserved:  # its caller went away: it does not wait any longer
                task.cancel()

        self._unserved.add(task)
        task.add_done_callback(self._unserved.discard)
        return end

    async def _hold(
        self,
        over: asyncio.Event,
        ready: Ready,
        failed: Callable[[WaiError], None],
        told: Callable[[Waited], None],
    ) -> None:
        task = asyncio.current_task()
        try:
            async with self._supervisor.lease(self.alias) as endpoint:
                if task is not None:
                    self._unserved.discard(task)
                if over.is_set():
                    return  # the caller went away while it waited
                if (load := endpoint.loaded) is not None:
                    told(Waited(load.load_s, load.waited_s, load.made_room))
                server = self._server(endpoint)
                self._leases[endpoint.url] = self._leases.get(endpoint.url, 0) + 1
                try:
                    ready(server.client, server.base_path, server.authorization)
                    await over.wait()
                finally:
                    self._leases[endpoint.url] -= 1
        except WaiError as error:
            if not over.is_set():
                failed(error)
        except Exception:
            _log.exception("the lease of %s failed", self.alias)
            if not over.is_set():
                failed(WaiError("this node failed to reach the model; its log says why"))

    def _server(self, endpoint: ServerAccess) -> Upstream:
        server = self._servers.get(endpoint.url)
        if server is None:
            server = self._servers[endpoint.url] = self.server(endpoint.url, endpoint.key)
        return server

    async def _close_unused_servers(self) -> None:
        """Close the connections to servers that have ended and that no request uses."""
        serving = self._supervisor.serving().get(self.alias)
        for url in [url for url in self._servers if serving is None or url != serving.url]:
            if not self._leases.get(url):
                self._leases.pop(url, None)
                await self._servers.pop(url).aclose()

    async def aclose(self) -> None:
        """Release every lease and close every connection."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers.values():
            await server.aclose()
        self._servers.clear()


class ManagedVllm(ManagedUpstream):
    """The upstream of a model that a vLLM of the node's own serves."""

    kind = VllmUpstream.kind
    apis = VllmUpstream.apis
    capabilities = VllmUpstream.capabilities
    server = VllmUpstream

    def _in_memory(
        self, model: ModelStatus, status: DeploymentStatus | None, *, waits: bool
    ) -> ModelStatus:
        """See `ManagedUpstream`. vLLM does not tell how many requests it takes at once."""
        told = super()._in_memory(model, status, waits=waits)
        return told if status is None else replace(told, slots_total=status.slots)


class ManagedModels:
    """Adds and removes upstreams as models are deployed and removed."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._upstreams: dict[str, ManagedUpstream] = {}
        self._failed: dict[str, str] = {}
        self._states: dict[str, State] = {}
        self._removing: set[asyncio.Task[None]] = set()

    def on_event(self, supervisor: Supervisor, event: DeploymentEvent) -> None:
        """Handle an event of the supervisor."""
        if event.name != "state":
            return
        alias = event.status.alias
        status = event.status
        self.tell_failure(alias, status.reason if status.given_up else None)
        upstream = self._upstreams.get(alias)
        before = self._states.get(alias)
        self._states[alias] = status.state
        if event.status.state is State.ABSENT:
            del self._states[alias]
            if upstream is not None:
                del self._upstreams[alias]
                task = asyncio.get_running_loop().create_task(self._watch.remove(upstream))
                self._removing.add(task)
                task.add_done_callback(self._removing.discard)
        elif upstream is None:
            made = ManagedVllm if status.served_by == SERVER else ManagedUpstream
            upstream = self._upstreams[alias] = made(alias, supervisor)
            self._watch.add(upstream)
        elif status.state is State.READY and before is not State.READY:
            # it is called as soon as somebody hears of that, which is before the next poll
            self._watch.learned(upstream, upstream.told_ready(status))
        else:
            self._watch.touch(upstream)

    def tell_failure(self, model: str, reason: str | None) -> None:
        """Have STATUS say that a model has failed and why, for those who ask for it; None: it has
        not."""
        short = None if reason is None else reason[:MAX_REASON_CHARS]
        if short == self._failed.get(model):
            return
        self._failed.pop(model, None)
        if short is not None:
            self._failed[model] = short
        newest = list(self._failed.items())[-MAX_TOLD_FAILURES:]
        self._watch.tell(FAILED_MODELS, dict(newest))
