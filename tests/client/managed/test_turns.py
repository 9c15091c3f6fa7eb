"""The rule by which models take turns: what it decides, what it never does, what it costs."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.harness.turns_rig import Box, Model, callers
from wai_node.managed.turns import LEAST_YIELD_S, Seat, Stage, Turns
from wai_node.models.space import Space

TEN = Space(ram=10)
LATE = 1000.0
OLD = Seat("old", Stage.LOADED, TEN, since=0, used_at=10, load_s=8)
NEWER = replace(OLD, name="newer", used_at=20)
WANTED = Seat("wanted", Stage.WANTED, TEN, since=LATE)
RULE = Turns()


def test_the_least_recently_used_one_makes_room() -> None:
    plan = RULE.decide([NEWER, OLD, WANTED], Space(), LATE)
    assert (plan.unload, plan.load) == ({"old": "wanted"}, [])


def test_what_fits_beside_the_others_unloads_nobody() -> None:
    plan = RULE.decide([OLD, WANTED], TEN, LATE)
    assert (plan.unload, plan.load) == ({}, ["wanted"])


def test_memory_that_is_promised_to_an_earlier_one_is_given_to_nobody_else() -> None:
    large = replace(WANTED, name="large", needs=Space(ram=20), since=LATE - 1)
    plan = RULE.decide([OLD, large, WANTED], TEN, LATE)
    assert (plan.unload, plan.load) == ({"old": "large"}, [])
    leaving = replace(OLD, stage=Stage.LEAVING)
    assert RULE.decide([leaving, large, WANTED], TEN, LATE).load == []


def test_a_busy_model_is_never_stopped_but_closed_once_its_turn_is_over() -> None:
    busy = replace(OLD, busy=1, since=LATE - 15, used_at=LATE)
    plan = RULE.decide([busy, WANTED], Space(), LATE)
    assert (plan.unload, plan.close, plan.again_at) == ({}, set(), LATE + 1)
    plan = RULE.decide([busy, WANTED], Space(), LATE + 1)
    assert (plan.unload, plan.close) == ({}, {"old"})
    plan = RULE.decide([replace(busy, busy=0), WANTED], Space(), LATE + 1)
    assert plan.unload == {"old": "wanted"}


def test_a_turn_of_an_idle_model_ends_early() -> None:
    idle = replace(OLD, since=LATE - 5, used_at=LATE - 1)
    plan = RULE.decide([idle, WANTED], Space(), LATE)
    assert (plan.unload, plan.again_at) == ({}, LATE + 1)
    assert RULE.decide([idle, WANTED], Space(), LATE + 1).unload == {"old": "wanted"}


def test_nobody_is_unloaded_before_all_that_must_go_can_go() -> None:
    large = replace(WANTED, needs=Space(ram=20))
    busy = replace(NEWER, busy=1, since=LATE - 1, used_at=LATE)
    plan = RULE.decide([OLD, busy, large], Space(), LATE)
    assert (plan.unload, plan.close, plan.again_at) == ({}, set(), LATE + 15)
    plan = RULE.decide([OLD, busy, large], Space(), LATE + 15)
    assert (plan.unload, plan.close) == ({}, {"old", "newer"})


def test_one_that_is_large_enough_spares_the_small_ones() -> None:
    small, large = replace(OLD, needs=Space(ram=4)), replace(NEWER, needs=Space(ram=10))
    assert RULE.decide([small, large, WANTED], Space(), LATE).unload == {"newer": "wanted"}


@pytest.mark.parametrize(("mine", "theirs", "goes"), [(0, 0, False), (0, 1, False), (1, 0, True)])
def test_one_that_is_kept_loaded_goes_only_for_a_more_important_one(
    mine: int, theirs: int, goes: bool
) -> None:
    kept = replace(OLD, kept=True, priority=theirs)
    plan = RULE.decide([kept, replace(WANTED, priority=mine)], Space(), LATE)
    assert bool(plan.unload) is goes
    assert ("kept loaded" in plan.blocked.get("wanted", "")) is not goes


def test_a_more_important_model_does_not_wait_for_a_turn_to_end() -> None:
    fresh = replace(OLD, since=LATE, used_at=LATE)
    urgent = replace(WANTED, priority=1)
    assert RULE.decide([fresh, urgent], Space(), LATE).unload == {"old": "wanted"}
    assert RULE.decide([replace(fresh, busy=1), urgent], Space(), LATE).close == {"old"}


def test_a_more_important_model_that_nobody_uses_makes_room_after_a_while() -> None:
    idle = replace(OLD, priority=5, used_at=LATE)
    at = LATE + max(LEAST_YIELD_S, 80)
    plan = RULE.decide([idle, WANTED], Space(), LATE)
    assert (plan.unload, plan.close, plan.blocked, plan.again_at) == ({}, set(), {}, at)
    assert RULE.decide([idle, WANTED], Space(), at).unload == {"old": "wanted"}


def test_an_empty_box_may_try_what_the_estimate_thinks_too_large() -> None:
    assert RULE.decide([WANTED], Space(), LATE).load == ["wanted"]
    other = replace(WANTED, name="other", since=LATE + 1)
    assert RULE.decide([WANTED, other], Space(), LATE).load == ["wanted"]


def test_nobody_is_blocked_by_what_may_soon_change() -> None:
    for stage in (Stage.LOADING, Stage.CHANGING, Stage.LEAVING):
        other = replace(OLD, stage=stage, kept=True, needs=Space(ram=1))
        assert RULE.decide([other, WANTED], Space(), LATE).blocked == {}


def test_the_gpu_and_the_ram_are_counted_apart() -> None:
    on_gpu = replace(OLD, needs=Space((10,), 1))
    in_ram = replace(NEWER, needs=Space(ram=20))
    wanted = replace(WANTED, needs=Space((8,), 2))
    assert RULE.decide([on_gpu, in_ram, wanted], Space(ram=2), LATE).unload == {"old": "wanted"}


# -- on a made-up box, with a fake clock

models = st.builds(
    lambda needs, load_s, priority, kept: (needs, load_s, priority, kept),
    st.integers(1, 10),
    st.floats(0.1, 60.0),
    st.integers(-1, 1),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(models, min_size=2, max_size=5), st.integers(0, 9999), st.integers(8, 25))
def test_nobody_starves_and_memory_is_enough_whatever_comes(
    drawn: list[tuple[int, float, int, bool]], seed: int, memory: int
) -> None:
    """The box itself fails where memory is oversubscribed or a busy model is stopped."""
    dice = random.Random(seed)
    found = [
        Model(f"m{n}", Space(ram=min(needs, memory)), load_s, priority=priority, kept=kept)
        for n, (needs, load_s, priority, kept) in enumerate(drawn)
    ]
    box = Box(found, Space(ram=memory), work_s=lambda: dice.uniform(0.1, 20.0))
    for model in found:
        if model.kept:
            box.at(0.0, box.want, model.name)
    for _ in range(60):
        box.at(dice.uniform(0, 600), box.ask, found[dice.randrange(len(found))].name)
    box.run(600 + 120 * len(found) * 60)
    for model in found:
        assert not model.waiting or model.name in box.blocked, "it waits for ever"


def busy_box(turns: Turns) -> Box:
    """Two models, room for one, a load takes 8 s; eight callers who think for a second."""
    dice = random.Random(3)
    pair = [Model("a", TEN), Model("b", TEN)]
    box = Box(pair, TEN, turns, lambda: dice.expovariate(1 / 3.0))
    callers(box, ["a", "b"], 8, 1.0)
    box.run(3600)
    return box


def test_two_models_asked_for_in_alternation_are_not_swapped_at_each_request() -> None:
    before, after = busy_box(Turns(turn_loads=0, least_turn_s=0)), busy_box(Turns())
    swaps = [sum(m.loads for m in box.models.values()) / 60 for box in (before, after)]
    means = [statistics.mean(box.waits) for box in (before, after)]
    assert swaps[0] > 4.0, "the comparison has no thrash to prevent"
    assert swaps[1] < 2.2
    assert len(after.waits) > 2 * len(before.waits)
    assert means[1] < means[0] / 2
    assert max(after.waits) < 90
