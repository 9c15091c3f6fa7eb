"""Relays that share a database, under load: one dies, all are restarted, PostgreSQL is away.

A caller asks any relay that says that it is ready, as a load balancer would have it. With
WAI_HARD=1 in the environment there are 200 callers, four nodes, and half a minute without database.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.harness.caller import chat, events, request
from tests.harness.cluster import ApiKey, Cluster
from tests.harness.counting_upstream import MODEL, CountingUpstream, counting_upstream
from tests.harness.postgres import PostgresServer
from tests.harness.processes import wait_until
from tests.harness.relays import ids_of, is_good, own_id, relays

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.timeout(300)]

HARD = bool(os.environ.get("WAI_HARD"))
CALLERS, NODES = (200, 4) if HARD else (8, 2)
AWAY_S = 30.0 if HARD else 8.0  # for which the database is away
TOKENS = 20


@dataclass
class Fleet:
    """Relays that share a database, and two nodes that joined the first one."""

    server: PostgresServer
    relays: list[Cluster]
    upstreams: list[CountingUpstream]
    standby: PostgresServer | None


@contextmanager
def a_fleet(folder: Path, *, standby: bool = False) -> Iterator[Fleet]:
    """`standby`: the database has one, to which the relays may turn."""
    with ExitStack() as ending:
        server = ending.enter_context(PostgresServer())
        url, second = server.create_database("fleet"), None
        if standby:
            second = server.standby()
            url = url.replace("/fleet", f",127.0.0.1:{second.port}/fleet")
        upstreams = [ending.enter_context(counting_upstream(every_s=0.01)) for _ in range(NODES)]
        running = ending.enter_context(relays(folder, url))
        for number, upstream in enumerate(upstreams):
            running[0].add_node(f"box{number}", upstream.url)
        for relay in running:
            for number in range(len(upstreams)):
                is_ready = partial(_is_ready, relay, f"box{number}")
                wait_until(is_ready, "a node has no session to a relay")
        yield Fleet(server, running, upstreams, second)


_BOXES = [f"box{number}" for number in range(NODES)]


def _problems(relay: Cluster) -> set[str]:
    return {problem["kind"] for problem in relay.admin("get", "/problems")["data"]}


def _is_ready(relay: Cluster, node: str) -> bool:
    return relay.state_of(node) == "ready"


@dataclass
class Load:
    """Callers that ask until the end of the block. `failed` has why an answer was no good one."""

    relays: list[Cluster]
    key: ApiKey
    up: list[Cluster] = field(default_factory=list)
    whole: int = 0
    failed: list[str] = field(default_factory=list)
    cut: int = 0
    """Answers of a relay that was killed, which ended visibly."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[Load]:
        self.up = list(self.relays)
        with ThreadPoolExecutor(CALLERS) as pool:
            callers = [pool.submit(self._call_for_ever, number) for number in range(CALLERS)]
            try:
                yield self
            finally:
                self._over.set()
        for caller in callers:
            caller.result()

    def wait_for(self, more: int) -> None:
        """Wait until so many more answers were whole."""
        enough = self.whole + more
        wait_until(lambda: self.whole >= enough or bool(self.failed), f"{more} more answers")

    def _call_for_ever(self, number: int) -> None:
        chance = random.Random(number)
        while not self._over.is_set():
            relay = chance.choice(self.up)
            try:
                problem = self._call(relay)
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            with self._lock:
                if problem and relay not in self.up:
                    self.cut += 1
                elif problem:
                    self.failed.append(problem)
                else:
                    self.whole += 1

    def _call(self, relay: Cluster) -> str:
        headers = {"Authorization": f"Bearer {self.key.secret}"}
        body = chat(MODEL, stream=True, max_tokens=TOKENS)
        with request(relay, "/v1/chat/completions", body, headers) as answer:
            if answer.status != 200:
                return f"{answer.status} {answer.read()[:200]!r}"
            told = list(events(answer))
        return "" if told and told[-1] == "[DONE]" else f"cut after {told[-1:]}"


def tokens_used(relay: Cluster, key: ApiKey) -> int:
    """What a key has used, as any relay tells."""
    rows = [row for row in relay.usage("key") if row["group"] == key.id]
    return sum(int(row["completion_tokens"]) for row in rows)


def test_a_relay_that_is_killed_costs_nobody_who_asks_the_others(tmp_path: Path) -> None:
    with a_fleet(tmp_path) as fleet:
        first, second, third = fleet.relays
        load = Load(fleet.relays, first.create_key("load"))
        wait_until(partial(is_good, third, load.key.secret), "the key is not known")
        wait_until(partial(is_good, second, load.key.secret), "the key is not known")
        dead = own_id(third)
        with load.running():
            load.wait_for(30)
            load.up.remove(third)
            first.admin("post", f"/relays/{dead}/drain")
            third.relay.kill()
            load.wait_for(60)
        assert load.failed == []
        wait_until(lambda: dead not in ids_of(first), "the dead relay is listed")
        wait_until(lambda: "relay" in _problems(second), "nobody says that it is lost")
        for node in _BOXES:
            assert first.state_of(node) == second.state_of(node) == "ready"
        third.start_relay_again()
        for node in _BOXES:
            wait_until(partial(_is_ready, third, node), "a node did not come back to it")
        assert third.get("/readyz") == 200  # the drain was for the process that was killed


def test_what_is_used_while_postgres_is_away_is_kept_and_nobody_fails(tmp_path: Path) -> None:
    with a_fleet(tmp_path) as fleet:
        first, second, third = fleet.relays
        load = Load(fleet.relays, first.create_key("load"))
        for relay in fleet.relays:
            good = partial(is_good, relay, load.key.secret, max_tokens=TOKENS)
            wait_until(good, "the key is not known")
            load.whole += 1
        with load.running():
            load.wait_for(20)
            fleet.server.stop()
            began = time.monotonic()
            while time.monotonic() - began < AWAY_S:
                load.wait_for(5)
            fleet.server.start()
            load.wait_for(40)
        assert load.failed == []
        total = load.whole * TOKENS
        for relay in (second, third):
            wait_until(lambda relay=relay: tokens_used(relay, load.key) == total, "usage")  # type: ignore[misc]
        revoked = second.create_key("later")
        wait_until(partial(is_good, first, revoked.secret), "changes are not followed")


def test_a_standby_takes_over_under_load_and_what_is_used_is_counted(tmp_path: Path) -> None:
    with a_fleet(tmp_path, standby=True) as fleet:
        first, second, _ = fleet.relays
        load = Load(fleet.relays, first.create_key("load"))
        for relay in fleet.relays:
            good = partial(is_good, relay, load.key.secret, max_tokens=TOKENS)
            wait_until(good, "the key is not known")
            load.whole += 1
        assert fleet.standby is not None
        with load.running():
            load.wait_for(20)
            fleet.server.stop()
            fleet.standby.promote()
            load.wait_for(20)
            added = second.create_key("later")  # is written
            load.wait_for(20)
        assert load.failed == []
        wait_until(partial(is_good, first, added.secret), "changes are not followed")
        total = load.whole * TOKENS
        wait_until(lambda: tokens_used(second, load.key) == total, "usage is not whole")


def test_all_relays_are_restarted_one_after_the_other_and_nobody_notices(tmp_path: Path) -> None:
    with a_fleet(tmp_path) as fleet:
        first, second, _ = fleet.relays
        load = Load(fleet.relays, first.create_key("load"))
        for relay in fleet.relays:
            wait_until(partial(is_good, relay, load.key.secret), "the key")
        with load.running():
            for relay in fleet.relays:
                load.wait_for(10)
                relay.admin("post", f"/relays/{own_id(relay)}/drain")
                assert relay.get("/readyz") == 503
                load.up.remove(relay)
                relay.restart_relay()
                for node in _BOXES:
                    wait_until(partial(_is_ready, relay, node), "a node did not come back to it")
                wait_until(lambda r=relay: r.get("/readyz") == 200, "it is not ready")  # type: ignore[misc]
                load.up.append(relay)
        assert load.failed == []
        assert load.cut == 0
        assert {own_id(relay) for relay in fleet.relays} == set(ids_of(second))


def test_a_node_removed_at_one_relay_is_out_at_all(tmp_path: Path) -> None:
    with a_fleet(tmp_path) as fleet:
        first, second, third = fleet.relays
        second.admin("delete", "/nodes/box0")
        for relay in (first, third):
            wait_until(lambda r=relay: r.state_of("box0") is None, "it is in still")  # type: ignore[misc]
            assert _is_ready(relay, "box1")
        log = tmp_path / "relay0" / "node-box0.log"
        wait_until(lambda: "was removed" in log.read_text(), "the node is not told")


def test_a_box_joins_by_another_relay_than_the_one_that_made_its_invite(tmp_path: Path) -> None:
    with a_fleet(tmp_path) as fleet:
        first, second, _ = fleet.relays
        invite = first.invite()
        first.relay.kill()
        joined = json.loads(_join(invite, tmp_path / "late"))
        assert joined["relay"] != first.url
        assert second.state_of(joined["name"]) == "offline"


def _join(invite: str, data: Path) -> str:
    from tests.harness.cluster import wai

    return wai("node", "join", invite, "--data", data, "--name", "late", "--json")
