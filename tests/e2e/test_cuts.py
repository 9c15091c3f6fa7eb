"""The tunnel's TCP is cut again and again in the middle of streams: no caller ever notices.

Real processes and a proxy between them; every stream has known content, which must come once, whole
and in order. (`tests/transport` does the same to the cores alone, many more times.)
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.harness.caller import chat, events, request
from tests.harness.cluster import Cluster, cluster
from tests.harness.odd_upstream import COUNT, MODELS, odd_upstream
from tests.harness.processes import wait_until
from tests.harness.tcp_proxy import TcpProxy, tcp_proxy

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CUTS = 100  # of each kind of stream
AT_ONCE = 4


@pytest.fixture
def tunnelled(tmp_path: Path) -> Iterator[tuple[Cluster, TcpProxy, dict[str, str]]]:
    with (
        odd_upstream() as odd,
        cluster(tmp_path) as running,
        tcp_proxy(running.port) as proxy,
    ):
        running.add_node("box", odd.url, models=len(MODELS), options=("--relay", proxy.address))
        assert proxy.connections == 1
        yield running, proxy, {"Authorization": f"Bearer {running.create_key().secret}"}


def test_no_answer_loses_repeats_or_reorders_a_byte(
    tunnelled: tuple[Cluster, TcpProxy, dict[str, str]],
) -> None:
    running, proxy, headers = tunnelled
    whole_way_through_cuts(proxy, partial(count, running, headers))


def test_no_upload_loses_repeats_or_reorders_a_byte(
    tunnelled: tuple[Cluster, TcpProxy, dict[str, str]],
) -> None:
    running, proxy, headers = tunnelled
    whole_way_through_cuts(proxy, partial(upload, running, headers))


def whole_way_through_cuts(proxy: TcpProxy, stream: partial[None]) -> None:
    """Run `stream` over and over, `AT_ONCE` at a time, until the proxy has cut `CUTS` times."""
    seed = random.randrange(1 << 32)
    print("seed", seed)  # shown where it fails
    points = random.Random(seed)

    def run_until_cut_enough() -> None:
        while proxy.cuts < CUTS:
            if not proxy.cut_is_due:
                proxy.cut_after(points.randrange(1, 60_000))
            stream()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(run_until_cut_enough) for _ in range(AT_ONCE)]:
            done.result()


def count(running: Cluster, headers: dict[str, str]) -> None:
    with request(running, "/v1/chat/completions", chat("counts", stream=True), headers) as answer:
        got = list(events(answer))
    assert got.pop() == "[DONE]"
    numbers = [int(json.loads(text)["choices"][0]["delta"]["content"]) for text in got]
    assert numbers == list(range(COUNT))


def upload(running: Cluster, headers: dict[str, str]) -> None:
    body = chat("answers", filler=random.Random().randbytes(200_000).hex())
    with request(running, "/v1/chat/completions", body, headers) as answer:
        assert json.loads(answer.read())["text"] == hashlib.sha256(body).hexdigest()


def test_a_cut_while_nothing_flows_is_healed(
    tunnelled: tuple[Cluster, TcpProxy, dict[str, str]],
) -> None:
    running, proxy, headers = tunnelled
    proxy.cut()
    wait_until(lambda: proxy.connections == 2, "the node does not dial again")
    upload(running, headers)
