"""Limits of a key, with callers at three real relays: exact, and free again when one is killed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from tests.harness.caller import chat, events, request
from tests.harness.cluster import ApiKey, Cluster
from tests.harness.counting_upstream import MODEL, CountingUpstream, counting_upstream
from tests.harness.postgres import PostgresServer
from tests.harness.processes import wait_until
from tests.harness.relays import relays, status_of

pytestmark = [
    pytest.mark.long,
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("limits_of_several_relays"),
]

CALLERS = 100


@pytest.fixture(scope="module")
def upstream() -> Iterator[CountingUpstream]:
    with counting_upstream(every_s=0.01) as running:
        yield running


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as running:
        yield running


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, upstream: CountingUpstream, server: PostgresServer
) -> Iterator[list[Cluster]]:
    """Three relays, and one node that joined the first one."""
    folder = tmp_path_factory.mktemp("fleet")
    with relays(folder, server.create_database("fleet")) as running:
        running[0].add_node("box", upstream.url)
        for relay in running:
            wait_until(partial(_serves, relay), "the node has no session to a relay")
        yield running


def _serves(relay: Cluster) -> bool:
    return relay.state_of("box") == "ready"


def _key(fleet: list[Cluster], name: str, *options: str) -> ApiKey:
    """A key that all relays know. Only a list is asked for, which is no request by its limits."""
    key = fleet[0].create_key(name, *options)

    def is_known(relay: Cluster) -> bool:
        headers = {"Authorization": f"Bearer {key.secret}"}
        with request(relay, "/v1/models", None, headers) as answer:
            return answer.status == 200

    for relay in fleet:
        wait_until(partial(is_known, relay), "a relay does not know the key")
    return key


def _storm(fleet: list[Cluster], key: ApiKey, max_tokens: int) -> Counter[int]:
    """The statuses of `CALLERS` requests at once, spread over the relays."""
    with ThreadPoolExecutor(CALLERS // 2) as callers:
        asked = [
            callers.submit(status_of, fleet[n % len(fleet)], key.secret, max_tokens=max_tokens)
            for n in range(CALLERS)
        ]
        return Counter(one.result() for one in asked)


def test_a_hundred_callers_of_three_relays_get_what_the_limit_allows(fleet: list[Cluster]) -> None:
    assert _storm(fleet, _key(fleet, "rpm", "--rpm", "30"), max_tokens=1) == {200: 30, 429: 70}

    month = _key(fleet, "month", "--monthly-tokens", "2000")
    told = _storm(fleet, month, max_tokens=20)
    assert told[200] + told[429] == CALLERS
    wait_until(lambda: _usage(fleet[1], month)["requests"] >= CALLERS, "usage is missing")
    used = _usage(fleet[1], month)
    # How much others have reserved when one is refused is chance.
    assert 0 < used["prompt_tokens"] + used["completion_tokens"] <= 2_000
    while _storm(fleet, month, max_tokens=20)[200]:  # what was reserved and not used is there again
        pass
    used = _usage(fleet[1], month)
    assert 1_800 < used["prompt_tokens"] + used["completion_tokens"] <= 2_000


def _usage(relay: Cluster, key: ApiKey) -> dict[str, Any]:
    return next((row for row in relay.usage("key") if row["group"] == key.id), {"requests": 0})


def test_while_the_database_is_away_shares_go_on_and_tight_keys_hear_of_it(
    fleet: list[Cluster], server: PostgresServer
) -> None:
    tight = _key(fleet, "tight", "--concurrency", "2").secret
    wide = _key(fleet, "wide", "--concurrency", "500", "--rpm", "100000").secret
    for relay in fleet:
        for secret in (tight, wide):
            assert status_of(relay, secret, max_tokens=1) == 200
    server.stop()
    for _ in range(20):
        assert [status_of(relay, wide, max_tokens=1) for relay in fleet] == [200] * 3
    with request(
        fleet[0],
        "/v1/chat/completions",
        chat(MODEL, max_tokens=1),
        {"Authorization": f"Bearer {tight}"},
    ) as refused:
        assert (refused.status, refused.headers["retry-after"]) == (503, "2")
        assert b"overloaded" in refused.read()
    kinds = {(one["kind"], one["text"][:30]) for one in fleet[0].admin("get", "/problems")["data"]}
    assert kinds >= {("database", "the database has not answered ")}
    server.start()
    for relay in fleet:
        is_back = partial(_status_is, relay, tight, 200)
        wait_until(is_back, "limits are not kept again")


def _status_is(relay: Cluster, secret: str, status: int) -> bool:
    return status_of(relay, secret, max_tokens=1) == status


def test_requests_at_once_come_back_when_their_relay_is_killed(fleet: list[Cluster]) -> None:
    secret = _key(fleet, "slots", "--concurrency", "2").secret
    headers = {"Authorization": f"Bearer {secret}"}
    body = chat(MODEL, stream=True, max_tokens=100_000)
    with (
        request(fleet[2], "/v1/chat/completions", body, headers) as one,
        request(fleet[2], "/v1/chat/completions", body, headers) as other,
    ):
        next(events(one))
        next(events(other))
        assert status_of(fleet[0], secret, max_tokens=1) == 429
        fleet[2].relay.kill()
        killed_at = time.monotonic()
    wait_until(lambda: status_of(fleet[0], secret, max_tokens=1) == 200, "they never come back")
    assert time.monotonic() - killed_at < 20.0  # 14 s, and what a busy machine takes
    alive = fleet[:2]
    assert [status_of(relay, secret, max_tokens=1) for relay in alive] == [200, 200]
