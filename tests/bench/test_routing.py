"""The routing simulation: it runs, and its lower bound is one."""

from __future__ import annotations

import pytest

from bench.routing.fleets import FLEETS, capacity
from bench.routing.rivals import POLICIES
from bench.routing.simulation import Simulation, lower_bound
from bench.routing.traces import agents, mixed, paced


@pytest.mark.parametrize("policy", ["wai", "weighted least connections", "inference extension"])
@pytest.mark.parametrize("fleet", ["home", "lab, untold"])
def test_everybody_is_served_and_nobody_beats_the_bound(fleet: str, policy: str) -> None:
    specs = FLEETS[fleet]
    for trace in (agents(120), mixed(120)):
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
