"""The routing simulation: it runs, its lower bound is one, failures and bindings are as told."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from bench.routing.faults import Faults
from bench.routing.fleets import FLEETS, RTX_4090, capacity
from bench.routing.node import Job, Node, NodeSpec
from bench.routing.policies import LeastConnections, PrefixHash, Send
from bench.routing.rivals import POLICIES
from bench.routing.simulation import Simulation, lower_bound
from bench.routing.traces import TraceRequest, agents, mixed, paced

SOME = ["wai", "weighted least connections", "free slots, relay queue", "inference extension"]


@pytest.mark.parametrize("policy", SOME)
@pytest.mark.parametrize("fleet", ["home", "lab, untold", "shaky"])
def test_everybody_is_served_and_nobody_beats_the_bound(fleet: str, policy: str) -> None:
    specs = FLEETS[fleet]
    for trace in (agents(120), agents(120, bound=0.5), mixed(120)):
        requests, _ = paced(trace, 0.7 * capacity(specs, trace))
        outcome = Simulation(specs, POLICIES[policy], 1).run(requests)
        bound = lower_bound(specs, requests)
        assert outcome.failed < 0.1
        assert outcome.end_mean_s >= bound.end_mean_s
        assert outcome.p50_s >= bound.p50_s


def test_wai_hides_the_errors_of_a_node_that_fails() -> None:
    specs = FLEETS["lab, untold"]
    requests, _ = paced(mixed(300), 0.5 * capacity(specs, mixed(300)))
    assert Simulation(specs, POLICIES["wai"], 1).run(requests).failed == 0.0


class Seen(LeastConnections):
    """Notes where each request was sent, and when."""

    def __init__(self, specs: list[NodeSpec], send: Send, seed: int) -> None:
        super().__init__(specs, send, seed)
        self.sent: list[tuple[Job, int]] = []

    def send(self, job: Job, index: int) -> None:
        self.sent.append((job, index))
        super().send(job, index)


def _run(specs: list[NodeSpec], requests: list[TraceRequest]) -> list[tuple[Job, int]]:
    simulation = Simulation(specs, Seen, 1)
    simulation.run(requests)
    assert isinstance(simulation.policy, Seen)
    return simulation.policy.sent


def test_a_slow_failure_costs_its_caller_the_silence_and_holds_a_slot() -> None:
    stalls = replace(RTX_4090, name="stalls", slots=1, faults=Faults(late=1.0, silence_s=(7, 7)))
    node, job = Node(stalls), Job(TraceRequest(0.0, 100, 10, ()), silence_s=7.0)
    node.add(job, 0.0)
    assert (node.busy, node.next_event()) == (1, 7.0)
    assert node.settle(7.0).failed == [job]
    assert node.busy == 0
    outcome = Simulation([stalls, RTX_4090], PrefixHash, 1).run(
        [TraceRequest(float(i), 100, 10, (i,)) for i in range(40)]
    )
    assert outcome.failed == 0.0
    assert outcome.p99_s > 7.0


def test_a_node_that_is_down_for_a_while_serves_before_and_after() -> None:
    faults, rng = Faults(every_s=60.0, down_s=15.0, silence_s=(5, 20)), random.Random(1)
    down = [at for at in range(120) if faults.silence(at, rng) is not None]
    assert down == [*range(45, 60), *range(105, 120)]
    assert faults.up == 0.75


def test_a_bound_turn_goes_where_the_first_one_was_served_once_that_is_over() -> None:
    turns = [TraceRequest(i * 0.01, 2000, 50, (), conversation=i % 3) for i in range(30)]
    served: dict[int | None, set[int]] = {}
    last: dict[int | None, float] = {}
    for job, index in _run([RTX_4090, replace(RTX_4090, name="other")], turns):
        conversation = job.request.conversation
        served.setdefault(conversation, set()).add(index)
        assert job.arrived >= last.get(conversation, 0.0)
        last[conversation] = job.done
    assert [len(nodes) for nodes in served.values()] == [1, 1, 1]
    assert set.union(*served.values()) == {0, 1}


def test_a_bound_turn_that_no_longer_fits_binds_anew() -> None:
    small = replace(RTX_4090, name="small", context_tokens=1000)
    large = replace(RTX_4090, name="large", rtt_s=0.1)
    turns = [TraceRequest(float(i), 400 * (i + 1), 50, (), conversation=1) for i in range(5)]
    sent = [index for _, index in _run([small, large], turns)]
    assert sent[2:] == [1, 1, 1]


@pytest.mark.parametrize("policy", SOME)
def test_no_policy_sends_a_bound_turn_elsewhere(policy: str) -> None:
    specs = FLEETS["home"]
    trace = agents(200, bound=1.0)
    requests, _ = paced(trace, 0.7 * capacity(specs, trace))
    simulation = Simulation(specs, POLICIES[policy], 1)
    sent: list[tuple[Job, int]] = []
    send = simulation.policy.send_to

    def seen(job: Job, index: int) -> None:
        sent.append((job, index))
        send(job, index)

    simulation.policy.send_to = seen
    simulation.run(requests)
    bound = [(job, index) for job, index in sent if job.bound is not None]
    assert len(bound) > 100
    assert all(index == job.bound for job, index in bound)


def test_prefix_hash_passes_on_what_is_over_a_nodes_share() -> None:
    policy = PrefixHash([RTX_4090, replace(RTX_4090, name="b")], lambda job, index: None, 1)
    policy.bound = 1.25
    chosen = set()
    for i in range(8):
        job = Job(TraceRequest(float(i), 100, 10, (1, 2, 3, 4)))
        policy.arrive(job, float(i))
        chosen = {index for index, count in enumerate(policy.in_flight) if count}
    assert chosen == {0, 1}
