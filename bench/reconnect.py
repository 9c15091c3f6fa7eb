"""Measure how long nodes take to reconnect once the network works again: `bench.reconnect`.

A real relay, and the tunnels of many nodes in this process, which reach it through a proxy that
refuses connections, passes nothing, or resets them repeatedly; and the same for a relay that
is killed, or stopped, and started after a while. Prints, for each outage, the seconds from the
moment at which the network works again to each node's next finished handshake.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import uvloop

from bench.nodes import make_invites
from bench.procstat import allow_many_files
from tests.harness.cluster import Cluster, cluster
from tests.harness.fault_proxy import FaultProxy, fault_proxy
from wai_node.tunnel.dial import RelayAddress, dial
from wai_node.tunnel.goodbye import say_goodbye
from wai_node.tunnel.tunnel import Tunnel
from wai_protocol import invite as invites
from wai_protocol.events import Event
from wai_protocol.handshake import Hello, Welcome
from wai_protocol.identity import NodeKey
from wai_transport.live_session import LiveSession

_TIMEOUT_S: Final = 60.0
_SETTLE_S: Final = 2.0  # connections that have lived so long are good ones
_REFUSED_S: Final = (2.0, 10.0, 20.0, 50.0)
_STALLED_S: Final = (20.0, 40.0)
_FLAPPING_S: Final = 10.0
_RESTART_S: Final = 15.0


class BenchTunnel:
    """A node that only keeps its tunnel, and records when it is connected again."""

    def __init__(self, address: RelayAddress, key: NodeKey, name: str) -> None:
        hello = Hello(key.public, name, b"", agent="bench", instance=name, tunnel=0)
        self.tunnel = Tunnel(address, key, hello, self)
        self.connected_at = 0.0
        self.lost = 0
        self.problems: Counter[str] = Counter()

    def is_back(self, since: float) -> bool:
        """Return whether a handshake finished since then, and the connection still exists."""
        return self.connected_at >= since and self.tunnel.connected

    def on_event(self, session: LiveSession, event: Event) -> None:
        """Nobody calls it."""

    def on_session(self, session: LiveSession, welcome: Welcome) -> None:
        """A new session."""

    def on_session_ended(self, session: LiveSession) -> None:
        """A session could not be resumed."""
        self.lost += 1

    def on_dialled(self, problem: str) -> None:
        """There is a connection, or a reason why there is none."""
        if problem:
            self.problems[problem] += 1
        else:
            self.connected_at = time.monotonic()


async def join(text: str, name: str, port: int) -> BenchTunnel:
    """Return a node that has joined; its tunnel connects to `port`."""
    invite, key = invites.decode(text), NodeKey.generate()
    direct = RelayAddress(invite.url, invite.relay, invite.pin)
    hello = Hello(key.public, name, b"", agent="bench", instance="join")
    await say_goodbye(await dial(direct, key, hello, invite.secret), "it has joined")
    way = RelayAddress(invite.url, invite.relay, invite.pin, dial=("127.0.0.1", port))
    return BenchTunnel(way, key, name)


async def until_back(nodes: list[BenchTunnel], good_at: float) -> list[float]:
    """Seconds from `good_at` to each node's next connection, sorted."""
    async with asyncio.timeout(_TIMEOUT_S):
        while any(not node.is_back(good_at) for node in nodes):  # noqa: ASYNC110 - they note it
            await asyncio.sleep(0.01)
    return sorted(node.connected_at - good_at for node in nodes)


def show(what: str, nodes: list[BenchTunnel], seconds: list[float]) -> None:
    """A line of the table."""
    p50, p99 = seconds[len(seconds) // 2], seconds[min(len(seconds) * 99 // 100, len(seconds) - 1)]
    lost = sum(node.lost for node in nodes)
    for node in nodes:
        node.lost = 0
    print(
        f"{what:42} {len(nodes):4} nodes: p50 {p50:5.2f} s, p99 {p99:5.2f} s,"
        f" last {seconds[-1]:5.2f} s, {lost} sessions lost",
        flush=True,
    )


async def outage(
    what: str,
    nodes: list[BenchTunnel],
    begin: Callable[[], None],
    end: Callable[[], None],
    outage_s: float,
) -> None:
    """Measure one outage of the network."""
    await asyncio.sleep(_SETTLE_S)
    await asyncio.to_thread(begin)
    await asyncio.sleep(outage_s)
    await asyncio.to_thread(end)
    good_at = time.monotonic()
    show(f"{what} {outage_s:g} s", nodes, await until_back(nodes, good_at))


async def flapping(nodes: list[BenchTunnel], proxy: FaultProxy) -> None:
    """Connections are cut each 0.1 to 1.3 s, then no more."""
    await asyncio.sleep(_SETTLE_S)
    ends_at = time.monotonic() + _FLAPPING_S
    while time.monotonic() < ends_at:
        await asyncio.to_thread(proxy.reset)
        await asyncio.sleep(random.uniform(0.1, 1.3))
    # The last cut is at the moment at which the way is good.
    good_at = time.monotonic()
    await asyncio.to_thread(proxy.reset)
    show(f"flapping for {_FLAPPING_S:g} s", nodes, await until_back(nodes, good_at))


async def restart(nodes: list[BenchTunnel], running: Cluster, number: signal.Signals) -> None:
    """The relay is gone for a while."""
    await asyncio.sleep(_SETTLE_S)
    for node in nodes:
        node.problems.clear()
    running.relay.send(number)
    await asyncio.sleep(_RESTART_S)
    await asyncio.to_thread(running.start_relay_again)
    good_at = time.monotonic()
    came = await until_back_since(nodes, good_at)
    show(f"relay restarted ({number.name}) {_RESTART_S:g} s", nodes, came)
    told = sum((node.problems for node in nodes), Counter[str]())
    for problem, times in told.most_common(5):
        print(f"    {times} times: {problem}")


async def until_back_since(nodes: list[BenchTunnel], ready_at: float) -> list[float]:
    """As `until_back`; some nodes may be quicker than the first answer to a caller is."""
    return await until_back(nodes, ready_at - 1.0)


async def measure(folder: Path, count: int, restarted: int) -> None:
    """Run everything in `folder`."""
    with cluster(folder) as running, fault_proxy(running.port) as proxy:
        names = [f"bench-{number}" for number in range(restarted)]
        texts = await asyncio.to_thread(lambda: list(make_invites(running.data, names)))
        pairs = zip(texts, names, strict=True)
        everyone = [await join(text, name, proxy.port) for text, name in pairs]
        nodes = everyone[:count]
        tasks = [asyncio.ensure_future(node.tunnel.run()) for node in nodes]
        await until_back(nodes, 0.0)

        def no_answers() -> None:
            proxy.stall()
            proxy.reset()

        for seconds in _REFUSED_S:
            await outage("refused for", nodes, proxy.refuse, proxy.clear, seconds)
        for seconds in _STALLED_S:
            await outage("dials get no answer for", nodes, no_answers, proxy.clear, seconds)
        await flapping(nodes, proxy)
        tasks += [asyncio.ensure_future(node.tunnel.run()) for node in everyone[count:]]
        await until_back(everyone, 0.0)
        for number in (signal.SIGKILL, signal.SIGTERM):
            await restart(everyone, running, number)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.reconnect", description=__doc__)
    parser.add_argument("--nodes", type=int, default=50, help="behind the proxy")
    parser.add_argument("--restarted", type=int, default=200, help="at a relay that is restarted")
    given = parser.parse_args()
    allow_many_files()
    logging.getLogger("wai").setLevel(logging.ERROR)  # lost relays are intended here
    with tempfile.TemporaryDirectory(prefix="wai-way-back-") as folder:
        uvloop.run(measure(Path(folder), given.nodes, max(given.restarted, given.nodes)))


if __name__ == "__main__":
    main()
