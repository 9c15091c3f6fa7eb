"""The tunnel's TCP is cut again and again in the middle of streams: no caller ever notices.

Real processes and a proxy between them; every stream has known content, which must come once, whole
and in order, in both directions.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.harness.caller import chat, events, request
from tests.harness.cluster import Cluster, cluster
from tests.harness.odd_upstream import COUNT, MODELS, odd_upstream
from tests.harness.processes import wait_until
from tests.harness.tcp_proxy import TcpProxy, tcp_proxy

pytestmark = [
    pytest.mark.long,
    pytest.mark.e2e,
    pytest.mark.timeout(500),
    pytest.mark.xdist_group("cuts"),
]

# 200 take a minute: WAI_CUTS=200 make test ARGS=tests/e2e/test_cuts.py. `make chaos` has more.
CUTS = int(os.environ.get("WAI_CUTS", "60"))
# A node takes a connection that lives for less than a second as a reason to slow down. Four nodes,
# each cut about once a second, get through the cuts sooner than one.
NODES = 4
STEADY_S = 1.05
FARTHEST_CUT_BYTES = 60_000  # after the steady time: about a second of what flows through one node
ANSWERS_PER_NODE = 2
RETRY_S = 0.1  # a request made just while its node is away is told to come again


@dataclass(frozen=True, slots=True)
class Tunnelled:
    """A relay, its nodes each behind a proxy of its own, and a caller's header.

    Streams are pinned to a node, so that each of them has some to be cut.
    """

    cluster: Cluster
    proxies: list[TcpProxy]
    headers: dict[str, str]

    def pinned(self, node: int) -> dict[str, str]:
        """The caller's headers for a request to `node`."""
        return {**self.headers, "X-WAI-Node": f"box{node}"}

    def count(self, node: int) -> bool:
        """Read one answer of numbered events. False: the node was away when it was asked."""
        body, headers = chat("counts", stream=True), self.pinned(node)
        with request(self.cluster, "/v1/chat/completions", body, headers) as answer:
            if answer.status == 503:
                return False
            assert answer.status == 200, answer.read()
            got = list(events(answer))
        assert got.pop() == "[DONE]"
        numbers = [int(json.loads(text)["choices"][0]["delta"]["content"]) for text in got]
        assert numbers == list(range(COUNT))
        return True

    def upload(self, node: int) -> bool:
        """Send a body piece by piece, and compare what has arrived. False: as for `count`."""
        body = chat("answers", filler=random.Random().randbytes(200_000).hex())

        def pieces() -> Iterator[bytes]:
            for start in range(0, len(body), 16384):
                yield body[start : start + 16384]
                time.sleep(0.01)  # so that it is under way for a while

        headers = self.pinned(node)
        with request(self.cluster, "/v1/chat/completions", pieces(), headers) as answer:
            told = answer.read()
            if answer.status == 503:
                return False
            assert answer.status == 200, told
            assert json.loads(told)["text"] == hashlib.sha256(body).hexdigest()
        return True


@pytest.fixture
def tunnelled(tmp_path: Path) -> Iterator[Tunnelled]:
    with odd_upstream() as odd, cluster(tmp_path) as running, ExitStack() as proxies:
        made = [proxies.enter_context(tcp_proxy(running.port)) for _ in range(NODES)]
        for number, proxy in enumerate(made):
            options = ("--relay", proxy.address)
            running.add_node(f"box{number}", odd.url, models=len(MODELS), options=options)
            assert proxy.connections == 1
        key = running.create_key()
        yield Tunnelled(running, made, {"Authorization": f"Bearer {key.secret}"})


def test_no_stream_loses_repeats_or_reorders_a_byte(tunnelled: Tunnelled) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)  # shown where it fails
    points = random.Random(seed)
    streams: list[Callable[[], bool]] = [
        *(partial(tunnelled.count, n) for n in range(NODES) for _ in range(ANSWERS_PER_NODE)),
        *(partial(tunnelled.upload, n) for n in range(NODES)),
    ]
    with ThreadPoolExecutor(NODES + len(streams)) as pool:
        cutting = [
            pool.submit(cut_again_and_again, proxy, random.Random(points.random()))
            for proxy in tunnelled.proxies
        ]

        def run_until_all_is_cut(stream: Callable[[], bool]) -> int:
            done = 0
            while not all(cutter.done() for cutter in cutting):
                if stream():
                    done += 1
                else:
                    time.sleep(RETRY_S)
            return done

        running = [pool.submit(run_until_all_is_cut, stream) for stream in streams]
        assert all(stream.result() > 0 for stream in running)
        for cutter in cutting:
            cutter.result()
    assert sum(proxy.cuts for proxy in tunnelled.proxies) >= CUTS


def cut_again_and_again(proxy: TcpProxy, points: random.Random) -> None:
    """Cut at random bytes, whenever the connection has lived for long enough."""
    while proxy.cuts < CUTS // NODES:
        connections = proxy.cuts + 1
        wait_until(
            lambda enough=connections: proxy.connections >= enough,  # type: ignore[misc]
            "the node does not dial again",
        )
        time.sleep(STEADY_S)
        proxy.cut_after(points.randrange(1, FARTHEST_CUT_BYTES))
        wait_until(lambda: not proxy.cut_is_due, "nothing flows through this node")


def test_a_cut_while_nothing_flows_is_healed(tunnelled: Tunnelled) -> None:
    for proxy in tunnelled.proxies:
        proxy.cut()
    for proxy in tunnelled.proxies:
        wait_until(lambda cut=proxy: cut.connections == 2, "does not dial again")  # type: ignore[misc]
    for node in range(NODES):
        wait_until(partial(tunnelled.upload, node), "the node does not serve")
    assert tunnelled.count(0)
