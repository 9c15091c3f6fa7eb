"""Upstreams that tell nothing are judged by what callers get: failures, first tokens, waits."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness.cluster import ApiKey, Cluster, cluster
from tests.harness.loop_end import abort_connections
from tests.harness.paced_server import MODEL, Failure, Pace, PacedServer, paced_server

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.timeout(400)]
PROMPT = "Tell me of it. " * 20
TRIES = 3
"""What the relay learns are times, and a busy machine adds to them. A fault of the relay shows in
each try."""


@dataclass(frozen=True, slots=True)
class Got:
    """One answer: its status, whether it came to its end, and when its first content came."""

    status: int
    whole: bool
    first_s: float


@contextmanager
def fleet(folder: Path, *paces: Pace) -> Iterator[tuple[Cluster, list[PacedServer]]]:
    """A relay, and a node with one server for each of `paces`."""
    with ExitStack() as ending:
        servers = [ending.enter_context(paced_server(pace)) for pace in paces]
        running = ending.enter_context(cluster(folder))
        for number, server in enumerate(servers):
            running.add_node(f"node{number}", server.url)
        yield running, servers


async def ask(running: Cluster, key: ApiKey, prompt: str = PROMPT) -> Got:
    """One streamed chat."""
    body = {
        "model": MODEL,
        "stream": True,
        "max_tokens": 64,
        "messages": [{"role": "user", "content": prompt}],
    }
    data = json.dumps(body).encode()
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port, ssl=running.tls())
    try:
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
            b"content-type: application/json\r\nauthorization: Bearer %b\r\n"
            b"content-length: %d\r\n\r\n%b" % (key.secret.encode(), len(data), data)
        )
        first_s, status, whole = float("inf"), 0, False
        while line := await reader.readline():
            if line.startswith(b"HTTP/1.1"):
                status = int(line.split()[1])
            if b'"content"' in line:
                first_s = min(first_s, time.monotonic() - began)
            whole = whole or b"[DONE]" in line
        return Got(status, whole, first_s)
    finally:
        writer.transport.abort()


async def ask_many(running: Cluster, key: ApiKey, count: int, at_once: int) -> list[Got]:
    """`count` requests with different prompts, `at_once` at a time."""
    gate = asyncio.Semaphore(at_once)

    async def one(number: int) -> Got:
        async with gate:
            return await ask(running, key, f"{number}: {PROMPT}")

    return await asyncio.gather(*(one(number) for number in range(count)))


def run(asking: Coroutine[Any, Any, list[Got]]) -> list[Got]:
    """What `asking` got; no connection is left open."""

    async def whole() -> list[Got]:
        got = await asking
        await abort_connections()
        return got

    return asyncio.run(whole())


def in_one_try(folder: Path, trial: Callable[[Path], str]) -> None:
    """Assert that `trial`, which says what is wrong, once finds nothing. It has its own folder."""
    wrong = []
    for number in range(TRIES):
        (folder / str(number)).mkdir()
        wrong.append(trial(folder / str(number)))
        if not wrong[-1]:
            return
    raise AssertionError(f"in each of {TRIES} tries: {wrong}")


@pytest.mark.parametrize(
    "failure",
    [
        *("500", "429", "404", "401", "503", "402", "405", "410", "520"),
        *("error event", "error as JSON", "page", "empty", "role only", "role, error", "role, cut"),
        *("no answer", "sentence", "cut", "comments", "error, done"),
    ],
)
def test_a_node_that_fails_fast_gets_three_of_sixty_requests_and_nobody_sees_it(
    tmp_path: Path, failure: Failure
) -> None:
    def trial(folder: Path) -> str:
        with fleet(folder, Pace(failure=failure), Pace(tokens=4)) as (running, (broken, good)):
            got = run(ask_many(running, running.create_key(), 60, 2))
        assert all(one.status == 200 and one.whole for one in got)
        assert good.taken == 60
        return "" if broken.taken <= 3 else f"{broken.taken} were sent to the broken one"

    in_one_try(tmp_path, trial)


def test_a_node_that_has_recovered_soon_gets_its_share(tmp_path: Path) -> None:
    def trial(folder: Path) -> str:
        with fleet(folder, Pace(failure="500"), Pace()) as (running, (healing, _)):
            key = running.create_key()
            run(ask_many(running, key, 20, 4))
            healing.pace.failure = ""
            run(ask_many(running, key, 60, 4))  # some seconds
            before = healing.taken
            run(ask_many(running, key, 60, 4))
        share = healing.taken - before
        return "" if share >= 18 else f"{share} of 60 were sent to the one that has recovered"

    in_one_try(tmp_path, trial)


def test_forty_at_once_are_split_evenly_between_equal_nodes(tmp_path: Path) -> None:
    def trial(folder: Path) -> str:
        with fleet(folder, Pace(tokens=50), Pace(tokens=50)) as (running, servers):
            got = run(ask_many(running, running.create_key(), 40, 40))
        assert all(one.whole for one in got)
        taken = [server.taken for server in servers]
        return "" if min(taken) >= 16 else f"{taken} were sent to each"

    in_one_try(tmp_path, trial)


def test_a_slow_node_that_comments_early_gets_no_more_than_its_share(tmp_path: Path) -> None:
    def trial(folder: Path) -> str:
        slow = Pace(first_s=0.5, token_s=0.05, comment=True)
        with fleet(folder, slow, Pace(first_s=0.05, token_s=0.005)) as (running, servers):
            run(ask_many(running, running.create_key(), 30, 1))
        taken = servers[0].taken
        return "" if taken <= 6 else f"{taken} of 30 were sent to the slow one"

    in_one_try(tmp_path, trial)


def test_a_key_that_goes_first_is_quick_beside_a_flood(tmp_path: Path) -> None:
    pace = Pace(places=4, first_s=0.05, token_s=0.05, tokens=20, spread=0.5)

    def trial(folder: Path) -> str:
        with fleet(folder, pace, pace) as (running, _):
            flood, first = running.create_key("flood"), running.create_key("vip", "--priority", "3")

            async def both() -> list[Got]:
                burst = asyncio.create_task(ask_many(running, flood, 200, 200))
                await asyncio.sleep(3.0)
                got = [await ask(running, first) for _ in range(12)]
                burst.cancel()
                await asyncio.wait((burst,))
                return got

            got = run(both())
        assert all(one.whole for one in got)
        usual_s = statistics.median(one.first_s for one in got)
        return "" if usual_s < 0.6 else f"its first tokens came after {usual_s:.2f} s"

    in_one_try(tmp_path, trial)


def test_nobody_waits_while_a_server_for_one_at_a_time_is_idle(tmp_path: Path) -> None:
    pace = Pace(places=1, first_s=0.05, token_s=0.05, tokens=16)

    def trial(folder: Path) -> str:
        with fleet(folder, pace, pace) as (running, servers):
            key = running.create_key()
            run(ask_many(running, key, 8, 8))  # they are learned
            got = run(ask_many(running, key, 16, 2))
        waited = sum(one.first_s > 0.7 for one in got)
        taken = [server.taken for server in servers]
        good = waited <= 1 and min(taken) >= 8
        return "" if good else f"{waited} waited, {taken} were sent to each"

    in_one_try(tmp_path, trial)
