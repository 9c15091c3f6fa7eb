"""Limits of tokens with real processes: many callers at once, and a database that is held."""

from __future__ import annotations

import json
import socket
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness.caller import chat, request
from tests.harness.cluster import Cluster, cluster, wai
from tests.harness.counting_upstream import MODEL, counting_upstream
from tests.harness.processes import wait_until

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.timeout(400)]

HELD_S = 7.0  # longer than SQLite waits


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Cluster]:
    with counting_upstream(0.0002) as upstream, cluster(tmp_path) as made:
        made.add_node("box", upstream.url)
        yield made


def limited_key(running: Cluster, *limits: str) -> dict[str, str]:
    made = json.loads(wai("key", "create", "app", *limits, "--data", running.data, "--json"))
    return {"Authorization": f"Bearer {made['key']}"}


def ask(running: Cluster, key: dict[str, str], **fields: Any) -> tuple[int, dict[str, str], str]:
    body = chat(MODEL, stream=True, stream_options={"include_usage": True}, **fields)
    with request(running, "/v1/chat/completions", body, key) as answer:
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return answer.status, headers, answer.read().decode()


def tokens_of(running: Cluster) -> int:
    rows = running.usage("key")
    return sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)


@pytest.mark.parametrize("limit", ["--tpm", "--monthly-tokens"])
def test_a_hundred_callers_at_once_cannot_pass_a_limit_of_tokens(
    running: Cluster, limit: str
) -> None:
    key = limited_key(running, limit, "5000")
    with ThreadPoolExecutor(100) as callers:
        answers = list(callers.map(lambda _: ask(running, key, max_tokens=1000), range(100)))
    statuses = [status for status, _, _ in answers]
    served = statuses.count(200)
    assert 1 <= served <= 5
    assert statuses.count(429) == 100 - served
    wait_until(lambda: tokens_of(running) > 0, "the usage does not arrive")
    assert tokens_of(running) <= 5000
    status, headers, text = ask(running, key, max_tokens=6000)
    assert (status, headers["x-should-retry"]) == (429, "false")
    assert "Lower `max_tokens`" in text


def test_slow_uploads_of_a_limited_key_take_no_room_from_others(running: Cluster) -> None:
    slow = limited_key(running, "--concurrency", "1", "--rpm", "5")
    opened = []
    with ExitStack() as uploads:
        for _ in range(9):
            raw = socket.create_connection(("127.0.0.1", running.port), timeout=30.0)
            upload = uploads.enter_context(
                running.tls().wrap_socket(raw, server_hostname="127.0.0.1")
            )
            upload.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: relay\r\n"
                b"Authorization: %b\r\nContent-Length: %d\r\n\r\n"
                % (slow["Authorization"].encode(), 32 << 20)
            )
            opened.append(upload)
        refused = [upload.recv(12) for upload in opened[1:]]
        assert refused == [b"HTTP/1.1 429"] * 8
        assert ask(running, limited_key(running), max_tokens=3)[0] == 200


@contextmanager
def held_database(running: Cluster) -> Iterator[None]:
    database = sqlite3.connect(running.data / "relay.db", isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    yield
    database.execute("ROLLBACK")
    database.close()


def readiness(running: Cluster) -> dict[str, Any]:
    with request(running, "/readyz", None, {}) as answer:
        assert answer.status == 200
        said: dict[str, Any] = json.loads(answer.read())
        return said


@pytest.mark.parametrize("ended", ["killed", "stopped", "not ended"])
def test_usage_outlives_a_database_that_another_process_holds(running: Cluster, ended: str) -> None:
    key = limited_key(running, "--monthly-tokens", "100")
    with held_database(running):
        held_at = time.monotonic()
        while ask(running, key, max_tokens=40)[0] == 200:
            pass
        wait_until(
            lambda: readiness(running)["usage"] == "waiting for the disk",
            "/readyz does not say that the database takes nothing",
        )
        if ended == "not ended":
            time.sleep(max(held_at + HELD_S - time.monotonic(), 0.0))
        if ended == "killed":
            time.sleep(3.0)  # what is younger than a second may go with it
            running.relay.kill()
        elif ended == "stopped":
            running.relay.stop()
    if ended != "not ended":
        running.restart_relay()
        wait_until(lambda: running.state_of("box") == "ready", "the node does not come back")
    status, headers, _ = ask(running, key, max_tokens=40)
    assert (status, headers["x-should-retry"]) == (429, "false")
    wait_until(lambda: tokens_of(running) >= 80, "the usage does not arrive")
    assert tokens_of(running) <= 100
    assert readiness(running)["usage"] == "written"
