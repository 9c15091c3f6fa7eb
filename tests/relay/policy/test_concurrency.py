"""Concurrency: how many answers a server that tells nothing works on at once is learned."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable

import pytest

from wai_protocol.status import ModelStatus, NodeStatus
from wai_relay.policy.concurrency import FIRST_LIMIT, Beginning, Concurrency
from wai_relay.policy.demands import Demand
from wai_relay.policy.pace import Pace
from wai_relay.policy.scheduler import Result, Scheduler, Ticket, Tokens

TOKENS = 20
FIRST_S = 0.05


class Fleet:
    """Servers behind a scheduler, each with a number of places, that tell nothing. `token_s` says
    what a token takes beside so many others. `reordered`: the news of an end is told after that of
    the beginning that it made room for."""

    def __init__(
        self,
        *places: int,
        token_s: Callable[[int], float] = lambda others: 0.05,
        reordered: bool = False,
        stream: bool = True,
    ) -> None:
        self.scheduler = Scheduler()
        self.places = list(places)
        self.token_s = token_s
        self.reordered = reordered
        self.stream = stream
        self.running = [0] * len(places)
        self.inside: list[list[Ticket]] = [[] for _ in places]  # wait in the server
        self.rng = random.Random(1)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.serial = itertools.count()
        self.first: dict[Ticket, float] = {}  # time to first token
        self.on_done: Callable[[], object] = lambda: None
        for number in range(len(places)):
            self.scheduler.update(f"n{number}", NodeStatus((ModelStatus("m", "u"),)), 0.0)

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.serial), action))

    def ask(self, key: str = "k", priority: int = 0) -> Ticket:
        ticket = self.scheduler.submit(
            Demand("m", 100), key, self.now, priority=priority, max_wait_s=1e9
        )
        if ticket.placement is not None:
            self.arrive(ticket)
        else:
            ticket.on_change = lambda: self.arrive(ticket)
        return ticket

    def arrive(self, ticket: Ticket) -> None:
        assert ticket.placement is not None
        node = int(ticket.placement.node[1:])
        if self.running[node] >= self.places[node]:
            self.inside[node].append(ticket)
        else:
            self.running[node] += 1
            self.at(self.now + FIRST_S, lambda: self.begin(ticket, node))

    def begin(self, ticket: Ticket, node: int) -> None:
        assert ticket.placement is not None
        self.first[ticket] = self.now - ticket.at
        if self.stream:
            self.scheduler.first_token(ticket.placement, self.now)
        tokens = round(TOKENS * self.rng.uniform(0.5, 1.5))
        took_s = tokens * self.token_s(self.running[node] - 1)
        self.at(self.now + took_s, lambda: self.end(ticket, node, tokens))

    def end(self, ticket: Ticket, node: int, tokens: int) -> None:
        if self.inside[node]:
            following = self.inside[node].pop(0)
            if self.reordered:  # no prompt to read, and the beginning is told first
                self.begin(following, node)
            else:
                self.at(self.now + FIRST_S, lambda: self.begin(following, node))
        else:
            self.running[node] -= 1
        self.at(self.now + 0.003, lambda: self.told(ticket, tokens))

    def told(self, ticket: Ticket, tokens: int) -> None:
        assert ticket.placement is not None
        took = Tokens(100, 0, tokens)
        self.scheduler.finish(ticket.placement, self.now, Result.SERVED, took)
        self.on_done()

    def run(self, until: float) -> None:
        while True:
            tick = self.scheduler.next_deadline()
            event = self.events[0][0] if self.events else None
            times = [t for t in (tick, event) if t is not None]
            if not times or min(times) > until:
                self.now = until
                return
            self.now = max(self.now, min(times))
            if event is not None and event <= self.now:
                heapq.heappop(self.events)[2]()
            else:
                self.scheduler.handle_timeout(self.now)

    def limit(self, node: int = 0) -> int:
        return self.scheduler._pools["m"].lanes[f"n{node}"].concurrency.limit


@pytest.mark.parametrize("reordered", [False, True])
@pytest.mark.parametrize("places", [1, 2, 4, 7, 16])
def test_the_number_of_places_is_found_under_load(places: int, reordered: bool) -> None:
    fleet = Fleet(places, reordered=reordered)
    fleet.on_done = lambda: fleet.ask()  # as many wait as before
    for _ in range(60):
        fleet.ask()
    fleet.run(60.0)
    assert places <= fleet.limit() <= places + max(1, places * 3 // 8)


def test_a_server_for_one_at_a_time_is_learned_within_a_few_requests() -> None:
    fleet = Fleet(1)
    for _ in range(FIRST_LIMIT + 4):
        fleet.ask()
    fleet.run(4.0)
    assert fleet.limit() == 1


def test_a_batching_server_is_given_all_that_comes() -> None:
    fleet = Fleet(1000, token_s=lambda others: 0.02 + 0.0004 * others)
    tickets = [fleet.ask() for _ in range(60)]
    fleet.run(1.0)
    assert all(ticket.placement is not None for ticket in tickets)
    assert max(fleet.first.values()) < 0.7


def test_the_limit_stops_where_more_at_once_gains_nothing() -> None:
    pace = Pace()
    for others in range(12):
        pace.add(others, 0.01 * (1 + others))
    limits = Concurrency()
    for turn in range(100):
        began = Beginning(turn, turn - 0.05, 8, 1000, 0.05, math.inf)
        limits.began(began, pace)
    assert limits.limit <= 16


def test_a_lone_request_is_never_delayed() -> None:
    fleet = Fleet(1)
    for _ in range(20):
        ticket = fleet.ask()
        assert ticket.placement is not None
        fleet.run(fleet.now + 5.0)


def test_a_key_that_goes_first_is_quick_beside_a_flood() -> None:
    fleet = Fleet(4, 4)
    fleet.on_done = lambda: fleet.ask("flood")
    for _ in range(200):
        fleet.ask("flood")
    fleet.run(3.0)
    waits = []
    for _ in range(20):
        ticket = fleet.ask("vip", 3)
        fleet.run(fleet.now + 3.0)
        waits.append(fleet.first[ticket])
    assert sorted(waits)[10] < 0.6


def test_two_users_of_two_servers_for_one_at_a_time_never_wait_for_each_other() -> None:
    fleet = Fleet(1, 1)
    fleet.on_done = lambda: fleet.ask()
    first, second = fleet.ask(), fleet.ask()
    fleet.run(30.0)
    assert {t.placement.node for t in (first, second) if t.placement} == {"n0", "n1"}
    assert max(fleet.first.values()) < 1.0


def test_whole_answers_of_a_server_for_one_at_a_time_are_learned_roughly() -> None:
    fleet = Fleet(1, stream=False)
    fleet.ask()
    fleet.run(2.0)
    fleet.on_done = lambda: fleet.ask()
    for _ in range(20):
        fleet.ask()
    fleet.run(60.0)
    assert fleet.limit() <= 2


def test_whole_answers_of_a_batching_server_are_not_held_back() -> None:
    fleet = Fleet(1000, token_s=lambda others: 0.02 + 0.0004 * others, stream=False)
    fleet.on_done = lambda: fleet.ask()
    for _ in range(60):
        fleet.ask()
    fleet.run(20.0)
    assert fleet.limit() >= 16


def test_what_others_do_on_the_box_counts_and_one_of_ours_always_goes() -> None:
    scheduler = Scheduler()
    for name, busy in (("crowded", 30), ("idle", 0)):
        told = ModelStatus("m", "vllm", slots_busy=busy, decode_tps=50.0)
        scheduler.update(name, NodeStatus((told,)), 0.0)
    placed = [scheduler.submit(Demand("m", 100), "k", 1.0).placement for _ in range(4)]
    assert [p.node if p else None for p in placed] == ["idle"] * 4
    pinned = scheduler.submit(Demand("m", 100, pin="crowded"), "k", 1.0)
    assert pinned.placement is not None


def test_the_limit_of_nothing_known_is_the_usual_default() -> None:
    assert Concurrency().limit == FIRST_LIMIT


def test_one_more_than_is_known_is_unsure_until_it_went_well() -> None:
    concurrency, pace = Concurrency(), Pace()

    def answer(at: float, waited_s: float, advancing: int, since_end_s: float) -> tuple[int, int]:
        beginning = Beginning(at, at - waited_s, advancing, 9, 0.1, since_end_s)
        concurrency.began(beginning, pace)
        concurrency.judge(at + 1.0, pace)
        return concurrency.limit, concurrency.unsure

    assert answer(1.0, 0.1, 4, 5.0) == (5, 0)  # while it grows for the first time
    answer(10.0, 2.0, 4, 0.0)
    assert answer(12.0, 2.0, 4, 0.0) == (4, 0)  # two waited for another's end
    assert answer(20.0, 0.1, 4, 5.0) == (5, 1)  # one more is tried
    assert answer(21.0, 0.1, 5, 5.0) == (6, 1)  # it went well: the next is
    assert answer(30.0, 2.0, 5, 0.0) == (5, 0)  # that had to wait
