"""The processes for a kind of fault: a relay, one node, an upstream, and callers.

The node dials through a `FaultProxy`, or, with `packet_stage`, across a `PacketLink` from a network
namespace of its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from tests.harness.cluster import ApiKey, Cluster, cluster
from tests.harness.counting_upstream import CountingUpstream, counting_upstream
from tests.harness.fault_proxy import FaultProxy, fault_proxy
from tests.harness.network_namespace import BESIDE, Namespace, network_namespace
from tests.harness.packet_link import HERE, PacketLink, packet_link

from .callers import Callers

NODE: Final = "box"
EVERY_S: Final = 0.03  # between two numbers of a stream
NUMBERS: Final = 200  # of a stream: six seconds, if nothing happens
DEAD_S: Final = 2.5
"""Keepalive deadline of both ends on a `LinkStage`, so that dead links are noticed soon. All other
settings are the defaults, such as the 60 s that a session lives without a connection. A
`PacketStage` has defaults only, since the detection of black holes depends on them."""

_KEEPALIVE: Final = f"ping_s = 1.0\ndead_s = {DEAD_S}\n"
_EVERYWHERE: Final = "0.0.0.0"


@dataclass(frozen=True, slots=True)
class Size:
    """How many callers there are, and how many numbers each of their answers has."""

    callers: int
    numbers: int = NUMBERS


@dataclass(frozen=True, slots=True)
class Footprint:
    """The open files and the memory of a process."""

    open_files: int
    memory_mib: float

    @classmethod
    def of(cls, process: psutil.Process) -> Footprint:
        return cls(process.num_fds(), process.memory_info().rss / 2**20)


@dataclass(slots=True)
class Stage:
    """What a fault can use. `node_options` start another node with the same upstream."""

    running: Cluster
    upstream: CountingUpstream
    near: FaultProxy
    callers: Callers
    key: ApiKey
    node_options: tuple[str, ...]

    def left_over(self) -> list[str]:
        """Return what is still in use although no requests are open."""
        found = []
        if self.upstream.seen.running:
            found.append(f"the upstream still answers {self.upstream.seen.running} requests")
        found += [
            f"{node['name']} is {node['state']}, {node['slots_busy']} slots busy,"
            f" {node['queued']} requests queued"
            for node in self.running.list_nodes()
            if node["slots_busy"] or node["queued"] or node["state"] != "ready"
        ]
        return found

    def footprint(self) -> dict[str, Footprint]:
        """Return the footprints of the relay and the node."""
        pids = {"relay": self.running.relay.pid, NODE: self.running.nodes[NODE].daemon.pid}
        return {name: Footprint.of(psutil.Process(pid)) for name, pid in pids.items()}


@dataclass(slots=True)
class LinkStage(Stage):
    """A node that dials through `tunnel`."""

    tunnel: FaultProxy


@dataclass(slots=True)
class PacketStage(Stage):
    """A node, or callers, behind `link`, in `namespace`."""

    link: PacketLink
    namespace: Namespace


@contextmanager
def link_stage(folder: Path, size: Size, *, through: tuple[str, ...] = ()) -> Iterator[LinkStage]:
    """The node behind a `FaultProxy`; `through`: a command that starts the relay."""
    with ExitStack() as ending:
        upstream = ending.enter_context(counting_upstream(EVERY_S))
        options: tuple[str, ...] = ("--config", str(_settings(folder)))
        running = ending.enter_context(cluster(folder, *options, through=through))
        tunnel = ending.enter_context(fault_proxy(running.port))
        near = ending.enter_context(fault_proxy(upstream.port))
        options = (*options, "--relay", tunnel.address)
        running.add_node(NODE, near.url, options=options)
        key = running.create_key()
        callers = Callers(running, key.secret, size.callers, size.numbers)
        options = (*options, "--upstream", near.url)
        yield LinkStage(running, upstream, near, callers, key, options, tunnel)


@contextmanager
def packet_stage(
    folder: Path, size: Size, dice: random.Random, *, node_inside: bool
) -> Iterator[PacketStage]:
    """A namespace behind a `PacketLink`, with the node in it if `node_inside`. The relay listens on
    every address, so that it has the connections across the link itself."""
    with ExitStack() as ending:
        namespace = ending.enter_context(network_namespace())
        link = ending.enter_context(packet_link(namespace, dice))
        upstream = ending.enter_context(counting_upstream(EVERY_S))
        near = ending.enter_context(fault_proxy(upstream.port, BESIDE))
        running = ending.enter_context(cluster(folder, host=_EVERYWHERE))
        way = f"{HERE if node_inside else '127.0.0.1'}:{running.port}"
        options = ("--relay", way, "--upstream", near.url)
        running.join(NODE)
        running.start_node(NODE, *options, through=namespace.command if node_inside else ())
        running.wait_for_state(NODE, "ready")
        key = running.create_key()
        callers = Callers(running, key.secret, size.callers, size.numbers)
        yield PacketStage(running, upstream, near, callers, key, options, link, namespace)


def _settings(folder: Path) -> Path:
    settings = folder / "keepalive.toml"
    settings.write_text(_KEEPALIVE)
    return settings
