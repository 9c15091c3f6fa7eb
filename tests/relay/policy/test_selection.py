"""Selection: who gets a request, and what keeps somebody out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_protocol.errors import Fault
from wai_protocol.status import ModelStatus
from wai_relay.policy.concurrency import FIRST_LIMIT
from wai_relay.policy.demands import Demand, Readiness
from wai_relay.policy.scoring import Candidate
from wai_relay.policy.selection import Reason, select


def node(name: str, **fields: Any) -> Candidate:
    model = {"slots_total": 4, "context_tokens": 8192, "apis": ("openai",), "ready": True}
    model |= {"largest_context_tokens": None}
    for field in list(model):
        model[field] = fields.pop(field, model[field])
    fields.setdefault("slot_s", 5.0)
    tps = fields.pop("prefill_tps", 1000.0)
    told = model["slots_total"]
    fields.setdefault("slots", FIRST_LIMIT if told is None else told)
    return Candidate(name, ModelStatus("m", "u", **model), tps, **fields)  # type: ignore[arg-type]


ASK = Demand("m", 1000)


def test_equals_are_taken_in_turn_and_not_always_the_first() -> None:
    nodes = [node("a"), node("b"), node("c")]
    taken = Counter(select(ASK, nodes, turn=turn).node for turn in range(30))
    assert taken == {"a": 10, "b": 10, "c": 10}


def test_of_equals_the_one_with_the_larger_share_of_free_slots_goes_first() -> None:
    nodes = [node("half", busy=2), node("idle-enough", slots_total=8, busy=3)]
    assert select(ASK, nodes).node == "idle-enough"


def test_a_faster_node_is_chosen_and_the_reason_says_so() -> None:
    decision = select(ASK, [node("slow", prefill_tps=100.0), node("fast")])
    assert (decision.node, decision.reason) == ("fast", Reason.FASTEST)


def test_a_warm_prefix_beats_an_equally_fast_idle_node() -> None:
    decision = select(ASK, [node("cold"), node("warm", warm_tokens=900, busy=3)])
    assert (decision.node, decision.reason, decision.wait) == ("warm", Reason.WARM, False)


def test_affinity_gives_way_when_its_node_is_overloaded() -> None:
    warm = node("warm", warm_tokens=900, busy=4, waiting=3, slot_s=20.0)
    decision = select(ASK, [warm, node("cold")])
    assert (decision.node, decision.wait) == ("cold", False)


def test_a_busy_fast_node_is_waited_for_rather_than_a_slow_free_one() -> None:
    busy = node("fast", busy=4, slot_s=0.4)
    decision = select(ASK, [busy, node("slow", prefill_tps=50.0)])
    assert (decision.node, decision.wait, decision.reason) == ("fast", True, Reason.BUSY)


def test_a_wait_that_proved_too_hopeful_ends_at_the_free_node() -> None:
    nodes = [node("fast", busy=4, slot_s=0.4, still_s=30.0), node("slow", prefill_tps=50.0)]
    assert select(ASK, nodes, waited_s=30.0).node == "slow"
    moving = [nodes[0]._replace(still_s=0.1), nodes[1]]  # the line is long, and moves
    assert select(ASK, moving, waited_s=30.0).node == "fast"


def test_a_node_with_much_to_read_is_not_given_more_though_slots_are_free() -> None:
    decision = select(ASK, [node("a", prefill_ahead=5000.0, busy=1)])
    assert decision.wait


def test_a_prompt_goes_only_where_it_fits() -> None:
    nodes = [node("small", context_tokens=512), node("large", prefill_tps=10.0)]
    assert select(ASK, nodes).node == "large"


def test_a_prompt_that_fits_nowhere_is_told_which_context_it_needs() -> None:
    decision = select(Demand("m", 20_000), [node("a"), node("b", context_tokens=16_384)])
    error = decision.error()
    assert error.fault is Fault.CONTEXT_EXCEEDED
    assert "20016" in str(error)
    assert "16384" in str(error)


def test_an_estimate_alone_is_no_reason_to_refuse() -> None:
    nodes = [node("a"), node("b", context_tokens=16_384, prefill_tps=10.0)]
    demand = Demand("m", 20_000, certain_tokens=3000)
    decision = select(demand, nodes)
    assert (decision.node, decision.wait) == ("b", False)
    assert {score.node for score in decision.scores} == {"a", "b"}
    assert select(demand._replace(certain_tokens=17_000), nodes).error().fault is (
        Fault.CONTEXT_EXCEEDED
    )
    # Of those with the most room the best, and it is waited for.
    more = [*nodes, node("c", context_tokens=16_384)]
    assert select(demand, more).node == "c"
    assert select(demand, [nodes[0], node("b", context_tokens=16_384, busy=4)]).wait


@pytest.mark.parametrize("change", [{"ready": False}, {"readiness": Readiness.AWAY}])
def test_a_node_that_is_likely_to_be_too_small_is_not_tried_while_a_larger_one_comes_back(
    change: dict[str, Any],
) -> None:
    nodes = [node("a"), node("large", context_tokens=65_536, **change)]
    decision = select(Demand("m", 20_000, certain_tokens=3000), nodes)
    assert decision.error().fault is Fault.NO_NODE


def test_a_key_or_a_pin_narrows_the_hope_too() -> None:
    nodes = [node("a"), node("b", context_tokens=16_384)]
    demand = Demand("m", 20_000, certain_tokens=3000)
    assert select(demand._replace(pin="a"), nodes).node == "a"
    assert select(demand._replace(nodes=frozenset({"a"})), nodes).node == "a"
    assert select(demand._replace(avoid=frozenset({"b"})), nodes).node == "a"


def test_a_refusal_has_the_words_that_programs_look_for() -> None:
    text = str(select(Demand("m", 20_000), [node("a")]).error())
    assert "maximum context length is 8192 tokens" in text  # LiteLLM


def test_what_an_ollama_has_loaded_is_no_bound() -> None:
    ollama = node("ollama", context_tokens=4096, largest_context_tokens=131_072)
    assert select(Demand("m", 20_000), [ollama]).node == "ollama"
    assert select(Demand("m", 100, asked_context=65_536), [ollama, node("a")]).node == "ollama"
    # Where it need not be loaded again, it is better.
    roomy = node("roomy", context_tokens=32_768, prefill_tps=10.0)
    assert select(Demand("m", 20_000, max_output_tokens=9), [ollama, roomy]).node == "roomy"
    assert "131072" in str(select(Demand("m", 200_000), [ollama]).error())


@pytest.mark.parametrize("gone", [{"readiness": Readiness.AWAY}, {"ready": False}])
def test_a_larger_node_that_is_away_does_not_turn_an_estimate_into_a_refusal(
    gone: dict[str, Any],
) -> None:
    nodes = [node("here"), node("larger", context_tokens=131_072, **gone)]
    likely = Demand("m", 9000, certain_tokens=4000)
    assert select(likely, nodes).node == "here"
    surely = select(Demand("m", 9000), nodes)
    assert (surely.node, surely.fault) == (None, Fault.NO_NODE)
    assert surely.error().retry_after_s is not None  # it will be back


def test_where_all_were_tried_nothing_is_promised() -> None:
    decision = select(ASK._replace(avoid=frozenset({"a"})), [node("a")])
    assert (decision.fault, decision.error().retry_after_s) == (Fault.NO_NODE, None)


def test_a_context_that_the_caller_asks_for_is_found() -> None:
    demand = Demand("m", 100, asked_context=20_000)
    nodes = [node("fast"), node("roomy", context_tokens=32_768, prefill_tps=10.0)]
    assert select(demand, nodes).node == "roomy"
    assert select(demand, nodes[:1]).node == "fast"


def test_an_answer_that_would_be_cut_short_goes_where_it_is_not() -> None:
    demand = Demand("m", 1000, max_output_tokens=10_000)
    nodes = [node("fast"), node("roomy", context_tokens=32_768, prefill_tps=100.0)]
    assert select(demand, nodes).node == "roomy"
    assert select(demand, nodes[:1]).node == "fast"  # better a long answer cut than none


def test_room_for_an_answer_that_is_only_guessed_is_not_worth_a_long_line() -> None:
    demand = Demand("m", 1000, expected_output_tokens=10_000.0)
    near = [node("fast"), node("roomy", context_tokens=32_768, prefill_tps=1000.0)]
    assert select(demand, near).node == "roomy"
    far = [node("fast"), node("roomy", context_tokens=32_768, prefill_tps=50.0)]
    assert select(demand, far).node == "fast"


def test_a_pin_is_kept_though_another_is_better() -> None:
    decision = select(ASK._replace(pin="slow"), [node("fast"), node("slow", prefill_tps=10.0)])
    assert (decision.node, decision.reason) == ("slow", Reason.PINNED)


@pytest.mark.parametrize(
    ("demand", "nodes", "fault"),
    [
        (ASK, [], Fault.MODEL_NOT_FOUND),
        (ASK._replace(pin="x"), [node("a")], Fault.NODE_NOT_FOUND),
        (ASK._replace(pin="a"), [node("a", readiness=Readiness.DRAINING)], Fault.NO_NODE),
        (ASK._replace(pin="a", nodes=frozenset({"b"})), [node("a"), node("b")], Fault.FORBIDDEN),
        (ASK._replace(nodes=frozenset({"b"})), [node("a")], Fault.FORBIDDEN),
        (ASK._replace(local_only=True), [node("cloud", own=False)], Fault.FORBIDDEN),
        (ASK, [node("a", ready=False)], Fault.NO_NODE),
        (ASK, [node("a", readiness=Readiness.AWAY)], Fault.NO_NODE),
        (ASK, [node("a", slots_total=0)], Fault.NO_NODE),
        (ASK._replace(api="anthropic"), [node("a")], Fault.MODEL_NOT_FOUND),
        (ASK._replace(avoid=frozenset({"a"})), [node("a")], Fault.NO_NODE),
    ],
)
def test_refusals_name_their_cause(demand: Demand, nodes: list[Candidate], fault: Fault) -> None:
    decision = select(demand, nodes)
    assert decision.node is None
    assert decision.error().fault is fault
    assert str(decision.error())


def test_a_prompt_too_long_for_the_nodes_that_are_up_is_no_400_while_a_larger_one_is_away() -> None:
    nodes = [node("a"), node("large", context_tokens=65_536, readiness=Readiness.AWAY)]
    assert select(Demand("m", 20_000), nodes).fault is Fault.NO_NODE


def test_a_slot_that_is_only_a_try_is_for_who_would_wait_for_that_node() -> None:
    tried = node("tried", slots_total=None, slots=2, unsure=1, busy=1, slot_s=20.0)
    assert select(ASK, [tried, node("slower", prefill_tps=200.0)]).node == "slower"
    decision = select(ASK, [tried, node("slower", prefill_tps=200.0, busy=4, slot_s=200.0)])
    assert (decision.node, decision.wait) == ("tried", False)
    sure = tried._replace(unsure=0)
    assert select(ASK, [sure, node("slower", prefill_tps=200.0)]).node == "tried"


def test_a_node_whose_failures_take_long_costs_more_than_one_that_fails_at_once() -> None:
    slow = node("slow-to-fail", failure_rate=0.2, failed_try_s=12.0)
    decision = select(ASK, [slow, node("fails-at-once", failure_rate=0.4, failed_try_s=0.1)])
    assert decision.node == "fails-at-once"


def test_a_node_that_is_silent_though_it_should_answer_is_second_choice() -> None:
    nodes = [node("silent", silent_s=3.0), node("slower", prefill_tps=500.0)]
    assert select(ASK, nodes).node == "slower"
    assert select(ASK, [node("silent", silent_s=0.1), nodes[1]]).node == "silent"


def test_a_node_that_failed_lately_is_taken_only_when_nobody_else_can() -> None:
    cooling = node("cooling", readiness=Readiness.COOLING)
    assert select(ASK, [cooling, node("slow", prefill_tps=5.0)]).node == "slow"
    decision = select(ASK, [cooling])
    assert (decision.node, decision.reason) == ("cooling", Reason.LAST_RESORT)


candidates = st.builds(
    node,
    st.sampled_from(["a", "b", "c", "d", "e"]),
    slots_total=st.one_of(st.none(), st.integers(0, 4)),
    context_tokens=st.one_of(st.none(), st.integers(1, 4000)),
    apis=st.sampled_from([("openai",), ("ollama",), ("openai", "anthropic")]),
    ready=st.booleans(),
    prefill_tps=st.floats(0.5, 1e5),
    busy=st.integers(0, 6),
    waiting=st.integers(0, 6),
    prefill_ahead=st.floats(0, 1e5),
    warm_tokens=st.integers(0, 5000),
    readiness=st.sampled_from(Readiness),
    own=st.booleans(),
)
demands = st.builds(
    Demand,
    st.just("m"),
    st.integers(1, 5000),
    st.one_of(st.none(), st.integers(1, 5000)),
    pin=st.one_of(st.none(), st.sampled_from(["a", "b", "z"])),
    nodes=st.one_of(st.none(), st.frozensets(st.sampled_from(["a", "b", "c"]))),
    avoid=st.frozensets(st.sampled_from(["a", "b"]), max_size=1),
    local_only=st.booleans(),
)


@given(demands, st.lists(candidates, max_size=6, unique_by=lambda c: c.node), st.integers(0, 9))
def test_never_picks_a_node_that_cannot_serve(
    demand: Demand, nodes: list[Candidate], turn: int
) -> None:
    decision = select(demand, nodes, turn=turn)
    assert (decision.node is None) == (decision.fault is not None)
    if decision.node is None:
        assert str(decision.error())
        return
    chosen = next(c for c in nodes if c.node == decision.node)
    assert chosen.readiness in (Readiness.READY, Readiness.COOLING)
    assert chosen.model.ready
    assert (chosen.model.context_tokens or 10**9) >= demand.least_context
    assert demand.api in chosen.model.apis
    assert demand.pin in (None, chosen.node)
    assert demand.nodes is None or chosen.node in demand.nodes
    assert chosen.node not in demand.avoid
    assert chosen.own or not demand.local_only
    if not decision.wait:
        assert chosen.free > 0
