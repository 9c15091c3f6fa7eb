"""Models that are asleep on some nodes: who gets the request, how long it may wait, what is
learned."""

from __future__ import annotations

from typing import Any

from wai_protocol.errors import NodeUnavailable
from wai_protocol.status import ModelStatus, NodeStatus
from wai_relay.policy.demands import Demand
from wai_relay.policy.scheduler import (
    LOADED_GRACE_S,
    MAX_LOADING_WAIT_S,
    MAX_WAIT_S,
    Result,
    Scheduler,
    Ticket,
    Tokens,
)

ASK = Demand("m", 100, streams=True)


def status(**fields: Any) -> NodeStatus:
    told = {"slots_total": 2, "context_tokens": 8192, "prefill_tps": 1000.0, "decode_tps": 50.0}
    return NodeStatus((ModelStatus("m", "u", **{**told, **fields}),))


def fleet(**nodes: dict[str, Any]) -> Scheduler:
    scheduler = Scheduler()
    for name, fields in nodes.items():
        scheduler.update(name, status(**fields), 0.0)
    return scheduler


ASLEEP = {"loaded": False, "load_ms": 8000}


def node_of(ticket: Ticket) -> str:
    assert ticket.placement is not None
    return ticket.placement.node


def test_a_node_that_has_the_model_in_memory_comes_first() -> None:
    scheduler = fleet(asleep={**ASLEEP, "prefill_tps": 9000.0}, awake={"loaded": True})
    assert node_of(scheduler.submit(ASK, "k", 1.0)) == "awake"


def test_a_load_is_better_than_a_longer_wait() -> None:
    asleep = {**ASLEEP, "load_ms": 3000, "decode_tps": 20.0}
    scheduler = fleet(asleep=asleep, awake={"loaded": True, "decode_tps": 20.0})
    placed = [node_of(scheduler.submit(ASK, "k", 1.0)) for _ in range(3)]
    assert placed == ["awake", "awake", "asleep"]


def test_the_choice_says_what_the_load_costs() -> None:
    ticket = fleet(asleep=ASLEEP).submit(ASK, "k", 1.0)
    assert ticket.placement is not None
    [score] = ticket.placement.decision.scores
    assert (score.load_s, score.total_s) == (8.0, 8.1)
    assert score.cost_s > 8.1


def test_a_load_that_has_begun_takes_only_the_rest_of_its_time() -> None:
    scheduler = fleet(asleep=ASLEEP)
    scheduler.submit(ASK, "k", 1.0)
    ticket = scheduler.submit(ASK, "k", 6.0)
    assert ticket.placement is not None
    assert ticket.placement.decision.scores[0].load_s == 3.0


def test_a_node_that_loads_is_not_taken_for_one_that_hangs() -> None:
    scheduler = fleet(asleep=ASLEEP)
    scheduler.submit(ASK, "k", 1.0)
    ticket = scheduler.submit(ASK, "k", 8.0)
    assert ticket.placement is not None
    assert ticket.placement.decision.scores[0].failure_s == 0.0
    late = scheduler.submit(ASK, "k", 20.0)  # now it is overdue
    assert late.placement is None


def test_the_time_of_a_load_is_not_learned_as_the_speed_of_reading() -> None:
    scheduler = fleet(asleep=ASLEEP)
    ticket = scheduler.submit(ASK._replace(prompt_tokens=1000), "k", 1.0)
    placement = ticket.placement
    assert placement is not None
    scheduler.first_token(placement, 21.0)
    scheduler.finish(placement, 22.0, Result.SERVED, Tokens(1000, 0, 50))
    tps = placement.lane.prefill.tps
    assert tps is not None
    assert tps > 900


def test_who_is_in_line_for_a_model_that_is_loaded_waits_longer() -> None:
    scheduler = fleet(asleep={**ASLEEP, "slots_total": 1, "load_ms": 60_000})
    first, second = (scheduler.submit(ASK, "k", 0.0) for _ in range(2))
    now = 0.0
    while now < MAX_WAIT_S + 40:
        now += 1.0
        scheduler.handle_timeout(now)
    assert second.error is None
    scheduler.update("asleep", status(loaded=True, slots_total=1), now)
    assert first.placement is not None
    scheduler.finish(first.placement, now + 1, Result.SERVED, Tokens(1000, 0, 50))
    assert second.placement is not None


def test_a_load_that_never_ends_is_not_waited_for_for_ever() -> None:
    scheduler = fleet(asleep={**ASLEEP, "slots_total": 1})
    scheduler.submit(ASK, "k", 0.0)
    second = scheduler.submit(ASK, "k", 0.0)
    now = 0.0
    while second.error is None and now < 2 * MAX_LOADING_WAIT_S:
        now += 1.0
        scheduler.handle_timeout(now)
    assert isinstance(second.error, NodeUnavailable)
    assert MAX_LOADING_WAIT_S <= now <= MAX_LOADING_WAIT_S + 8 + LOADED_GRACE_S + 1
