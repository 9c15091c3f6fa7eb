"""Callers who go away at random moments: the slot is free again, and everyone's books agree.

The time from a caller's close to a free slot is printed (`-s` shows it), not asserted.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness.caller import chat
from tests.harness.cluster import Cluster, cluster
from tests.harness.llama_server import LlamaServer, llama_server
from tests.harness.processes import wait_until

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.timeout(500)]

CANCELS = 100
SLOTS = 2
# Long enough that no answer ends by itself before its caller has gone.
TOKENS = 1500
LONGEST_STAY_S = 0.06


@pytest.fixture
def real(tmp_path: Path, tiny_model: Path) -> Iterator[tuple[Cluster, LlamaServer]]:
    with (
        llama_server(tiny_model, tmp_path, slots=SLOTS, context_tokens=4096) as llama,
        cluster(tmp_path) as running,
    ):
        running.add_node("box", llama.url)
        yield running, llama


def test_cancels_at_random_moments_leave_nothing_behind(
    real: tuple[Cluster, LlamaServer],
) -> None:
    running, llama = real
    seed = random.randrange(1 << 32)
    print("seed", seed)  # shown where it fails
    dice = random.Random(seed)
    secret = running.create_key().secret
    took_s = []
    for number in range(CANCELS):
        # one in four goes away while it waits in line behind two others
        callers = SLOTS + 1 if number % 4 == 0 else 1
        hung_up = hang_up_after(running, secret, dice.uniform(0, LONGEST_STAY_S), callers)
        wait_until(lambda: llama.busy_slots() == 0, "a slot stays busy")
        took_s.append(time.monotonic() - hung_up)
    took_s.sort()
    print(
        f"\n{CANCELS} cancels, from the caller's close to free slots: median"
        f" {took_s[len(took_s) // 2] * 1000:.0f} ms, p98 {took_s[-3] * 1000:.0f} ms"
    )
    agree(running, llama)
    # and all of it still works
    with ThreadPoolExecutor(SLOTS) as pool:
        assert all(pool.map(lambda _: answers(running, secret), range(SLOTS)))
    agree(running, llama)


def hang_up_after(running: Cluster, secret: str, stay_s: float, callers: int) -> float:
    """Send `callers` requests, and close their connections `stay_s` later; when that was."""
    connections = []
    for _ in range(callers):
        connection = http.client.HTTPSConnection(
            "127.0.0.1", running.port, context=running.tls(), timeout=30
        )
        body = chat("tiny", stream=True, max_tokens=TOKENS, ignore_eos=True)
        headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        connections.append(connection)
    time.sleep(stay_s)
    hung_up = time.monotonic()
    for connection in connections:
        sock = connection.sock
        assert isinstance(sock, socket.socket)
        sock.shutdown(socket.SHUT_RDWR)
        connection.close()
    return hung_up


def answers(running: Cluster, secret: str) -> bool:
    """Whether a short request gets its answer."""
    connection = http.client.HTTPSConnection(
        "127.0.0.1", running.port, context=running.tls(), timeout=30
    )
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", chat("tiny", max_tokens=4), headers)
    status = connection.getresponse().status
    connection.close()
    return status == 200


def agree(running: Cluster, llama: LlamaServer) -> None:
    """The upstream, the node's word to the relay, and the relay itself: nobody is busy."""

    def upstream() -> int:
        figures = llama.metrics()
        waiting = figures["llamacpp:requests_processing"] + figures["llamacpp:requests_deferred"]
        return llama.busy_slots() + int(waiting)

    def node() -> int:
        (seen,) = running.list_nodes()
        busy: int = seen["slots_busy"] + seen["queued"]
        return busy

    def relay() -> int:
        return len(live_requests(running))

    views: dict[str, Callable[[], int]] = {"upstream": upstream, "node": node, "relay": relay}
    for name, view in views.items():
        wait_until(lambda view=view: view() == 0, f"{name} still counts somebody")  # type: ignore[misc]


def live_requests(running: Cluster) -> list[object]:
    """What the relay says is under way."""
    token = (running.data / "admin.token").read_text().strip()
    connection = http.client.HTTPSConnection(
        "127.0.0.1", running.port, context=running.tls(), timeout=30
    )
    connection.request("GET", "/admin/v1/requests", headers={"Authorization": f"Bearer {token}"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    found: list[object] = answer["data"]
    return found
