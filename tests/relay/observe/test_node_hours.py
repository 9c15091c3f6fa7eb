"""Each node's last hour: what is counted for whom, what is a gap, and what a restart leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from wai_relay.contracts.records import (
    DiscardingRecorder,
    PastRequest,
    RequestRecord,
    TokenCounts,
)
from wai_relay.observe.live import LiveRequests
from wai_relay.observe.node_hours import STEP_S, STEP_TICKS, STEPS, TICK_S, NodeHours, NodeNow

BOX = NodeNow("node_1", "box", True, 1, 4, 0, 0.012, 50.0)
ATTIC = NodeNow("node_2", "attic", True, 0, None, 0, None, None)


@dataclass
class Answer:
    """An upstream's answer that has said `tokens` so far."""

    first_content_at: float | None = 1.0
    tokens: int = 0
    seen: list[int] = field(default_factory=list)

    def counts(self, estimated_prompt: int) -> TokenCounts:
        return TokenCounts(estimated_prompt, 0, self.tokens)

    def give_up(self, fault: Any, message: str) -> None:
        raise AssertionError("nobody gives up here")


class Rig:
    """Two nodes that the test changes, and time that it makes pass."""

    def __init__(self) -> None:
        self.nodes = [BOX, ATTIC]
        self.live = LiveRequests()
        self.now = 1.8e9
        self.hours = NodeHours(
            DiscardingRecorder(),
            lambda: self.nodes,
            wall_clock=lambda: self.now,
            call_later=lambda delay_s, call: None,
        )
        self.hours.start(self.live)

    def step(self) -> None:
        for _ in range(STEP_TICKS):
            self.now += TICK_S
            self.hours.tick()

    def last(self, node: NodeNow, series: str) -> float | None:
        values: list[float | None] = getattr(self.hours.history(node.id), series)
        assert len(values) == STEPS
        return values[-1]


def record(node: str, tokens: int) -> RequestRecord:
    made = RequestRecord("req", 1.0, "POST", "/v1/chat/completions", model="m", node=node)
    made.tokens = TokenCounts(1, 0, tokens)
    return made


def test_tokens_count_for_the_node_that_says_them_once() -> None:
    rig = Rig()
    rig.hours.tick()
    kept = record("box", 0)
    live = rig.live.enter(kept, 0.0, lambda: None)
    live.answer = answer = Answer(tokens=60)
    rig.hours.tick()
    assert rig.hours.rows["node_1"].tokens_per_s == pytest.approx(60 / 2 / TICK_S)
    answer.tokens = 90
    rig.live.leave(live)
    kept.tokens = TokenCounts(1, 0, 90)
    rig.hours.finish(kept)
    for _ in range(STEP_TICKS - 2):
        rig.hours.tick()
    assert rig.last(BOX, "tokens_per_s") == pytest.approx(90 / STEP_S)
    assert rig.last(ATTIC, "tokens_per_s") == 0.0


def test_what_is_told_of_a_node_that_is_away_is_nothing() -> None:
    rig = Rig()
    rig.step()
    assert rig.last(BOX, "slots_busy") == 1.0
    assert rig.last(BOX, "slots_total") == 4.0
    assert rig.last(BOX, "use") == 50.0
    assert rig.last(ATTIC, "slots_total") is None
    assert rig.hours.rows["node_1"].rtt_ms == 12.0
    rig.nodes = [BOX._replace(there=False), ATTIC]
    rig.step()
    assert rig.last(BOX, "slots_busy") is None
    assert rig.last(BOX, "tokens_per_s") is None
    assert rig.hours.rows["node_1"].rtt_ms is None


def test_a_reconnection_is_counted_in_the_step_in_which_it_was() -> None:
    rig = Rig()
    rig.step()
    rig.nodes = [BOX._replace(reconnects=2), ATTIC]
    rig.step()
    assert rig.last(BOX, "reconnects") == 2.0
    rig.step()
    assert rig.last(BOX, "reconnects") == 0.0


def test_a_node_that_was_removed_and_a_provider_are_forgotten() -> None:
    rig = Rig()
    rig.hours.finish(record("some-cloud", 5))
    rig.step()
    rig.nodes = [ATTIC]
    rig.step()
    assert set(rig.hours.rows) == {"node_2"}
    assert rig.last(BOX, "slots_busy") is None
    assert rig.hours._finished == {}


def test_a_row_is_replaced_only_when_it_says_something_else() -> None:
    rig = Rig()
    rig.step()
    before = rig.hours.rows["node_1"]
    rig.step()
    assert rig.hours.rows["node_1"] is before


def test_the_tokens_of_the_hour_before_a_restart_are_there() -> None:
    rig = Rig()
    past = PastRequest(
        began_at=rig.now - 31.0,
        node="box",
        ttft_ms=0.0,
        duration_ms=30_000.0,
        completion_tokens=300,
        attempts=1,
        status=200,
        failed=False,
        cancelled=False,
    )
    rig.hours.restore([past, past._replace(node="gone"), past._replace(began_at=rig.now - 9000)])
    told = rig.hours.history("node_1").tokens_per_s
    assert sum(rate or 0.0 for rate in told) * STEP_S == pytest.approx(300, rel=0.01)
    assert told[0] == 0.0
    assert rig.hours.history("node_2").tokens_per_s == [None] * STEPS
