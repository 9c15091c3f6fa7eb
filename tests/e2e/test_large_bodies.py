"""Bodies of many megabytes through real processes: counted, sent again, and held within bounds."""

from __future__ import annotations

import json
import os
import threading
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.harness.caller import events, request
from tests.harness.cluster import Cluster, cluster
from tests.harness.processes import wait_until
from tests.harness.strict_server import MODEL, StrictServer, strict_server

pytestmark = [
    pytest.mark.long,
    pytest.mark.e2e,
    pytest.mark.timeout(400),
    pytest.mark.xdist_group("large"),
]

MIB = 1 << 20
PICTURES = 100
PICTURE_BYTES = 5_000_000
# As docs/operating-a-relay.md says: half of `held_total_bytes` is for long bodies, of which one key
# gets half; and 1.5 MiB for each request whose body lies on disk, its connection included.
GROWS_BY = 64 * MIB + PICTURES * 3 * MIB // 2
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Rig:
    cluster: Cluster
    busy: StrictServer
    other: StrictServer
    headers: dict[str, str]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with ExitStack() as ending:
        options = frozenset({"stream_options"})
        servers = [ending.enter_context(strict_server(also_known=options)) for _ in range(2)]
        running = ending.enter_context(cluster(tmp_path))
        for name, server in zip("ab", servers, strict=True):
            running.add_node(name, server.url)
        key = running.create_key()
        yield Rig(running, servers[0], servers[1], {"Authorization": f"Bearer {key.secret}"})


def photo(size: int, *, stream: bool = True) -> bytes:
    """A chat completion with one picture, as the SDKs send it: the model comes last."""
    url = "data:image/png;base64," + b64encode(os.urandom(size)).decode()
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    messages = [{"role": "user", "content": content}]
    return json.dumps({"messages": messages, "stream": stream, "model": MODEL}).encode()


def test_a_hundred_pictures_at_once_are_counted_and_sent_again_within_bounds(rig: Rig) -> None:
    rig.busy.busy = 1 << 30  # for good
    body = photo(PICTURE_BYTES)
    relay = psutil.Process(rig.cluster.relay.pid)
    before = peak = relay.memory_info().rss
    outcomes: Counter[str] = Counter()

    def ask() -> None:
        with request(rig.cluster, CHAT, body, rig.headers, timeout_s=200) as answer:
            outcomes[f"{answer.status} {list(events(answer))[-1]}"] += 1

    callers = [threading.Thread(target=ask) for _ in range(PICTURES)]
    for caller in callers:
        caller.start()
    for caller in callers:
        while caller.is_alive():
            caller.join(0.02)
            peak = max(peak, relay.memory_info().rss)
    assert outcomes == {"200 [DONE]": PICTURES}
    assert peak - before < GROWS_BY, f"{(peak - before) // MIB} MiB"
    assert rig.busy.requests > 0
    assert rig.other.requests == PICTURES

    def usage() -> dict[str, int]:
        rows = rig.cluster.usage("day")
        return rows[0] if rows else {"requests": 0}

    wait_until(lambda: usage()["requests"] == PICTURES, "the usage does not arrive")
    assert usage()["prompt_tokens"] == PICTURES * 900


@pytest.mark.parametrize("size", [100_000, 4_000_000])
def test_a_server_that_needs_a_length_gets_one(rig: Rig, size: int) -> None:
    body = photo(size, stream=False)
    with request(rig.cluster, CHAT, body, rig.headers) as answer:
        assert answer.status == 200
    # also where the caller told none
    with request(rig.cluster, CHAT, iter([body]), rig.headers) as answer:
        assert answer.status == 200
    assert rig.busy.body_bytes + rig.other.body_bytes == 2 * len(body)


def test_a_server_that_refuses_unknown_fields_streams(tmp_path: Path) -> None:
    with strict_server() as server, cluster(tmp_path) as running:
        running.add_node("a", server.url)
        headers = {"Authorization": f"Bearer {running.create_key().secret}"}
        for body in (photo(100), photo(2_000_000), photo(100)):
            with request(running, CHAT, body, headers) as answer:
                assert answer.status == 200
                assert list(events(answer))[-1] == "[DONE]"
        assert ["stream_options" in fields for fields in server.fields] == [
            *(True, False),  # the first request, twice
            *(False, False),
        ]
