"""The deployment machine, driven without processes: playbooks, then any order of events."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from wai_node.managed.deployment import (
    BESIDE_DRAIN_LIMIT_S,
    DOWNLOAD_RETRY_S,
    DRAIN_LIMIT_S,
    START_TRIES,
    Action,
    DeleteFiles,
    Deployment,
    Halt,
    Launch,
    StartDownload,
    State,
    Wish,
)
from wai_node.models.placement import Placement, Share

WISH = Wish(context_tokens=4096, slots=2, load_limit_s=100)
LARGER = replace(WISH, context_tokens=8192)


def ready(wish: Wish = WISH) -> Deployment:
    machine = Deployment(wish)
    assert machine.deploy() == [StartDownload()]
    assert machine.download_done(0) == [Launch(1, wish)]
    assert machine.server_ready(1, wish.context_tokens, 1) == []
    assert machine.state is State.READY
    return machine


def test_a_swap_beside_serves_with_the_old_until_the_new_is_ready() -> None:
    machine = ready()
    held, _ = machine.lease(2)
    assert machine.change(LARGER, 3, beside=True) == [Launch(2, LARGER)]
    assert machine.lease(4)[0] == 1
    assert (machine.state, machine.changing) == (State.READY, True)
    assert machine.server_ready(2, 8192, 5) == []  # two requests are still on the old one
    assert not machine.changing
    assert machine.lease(6)[0] == 2
    assert machine.release(1, 7) == []
    assert held == 1
    assert machine.release(1, 8) == [Halt(1)]
    machine.server_ended(1, "", (), 9)
    assert (machine.state, machine.serving, machine.context_served) == (State.READY, 2, 8192)


def test_a_swap_without_room_drains_first_and_holds_new_requests() -> None:
    machine = ready()
    machine.lease(2)
    assert machine.change(LARGER, 3, beside=False) == []
    assert machine.state is State.DRAINING
    assert machine.lease(4) == (None, [])
    assert machine.release(1, 5) == [Halt(1)]
    assert machine.changing
    assert machine.server_ended(1, "", (), 6) == [Launch(2, LARGER)]
    assert machine.server_ready(2, 8192, 7) == []
    assert not machine.changing
    assert machine.lease(8)[0] == 2


def test_an_answer_that_never_ends_does_not_hold_a_swap_for_ever() -> None:
    machine = ready()
    machine.lease(2)
    machine.change(LARGER, 3, beside=False)
    assert machine.next_deadline() == 3 + DRAIN_LIMIT_S
    assert machine.handle_timeout(3 + DRAIN_LIMIT_S) == [Halt(1)]


def test_an_old_server_that_nobody_waits_for_has_more_time_for_its_answers() -> None:
    machine = ready()
    machine.lease(2)
    machine.change(LARGER, 3, beside=True)
    assert machine.server_ready(2, 8192, 4) == []
    assert machine.next_deadline() == 4 + BESIDE_DRAIN_LIMIT_S
    assert machine.handle_timeout(4 + BESIDE_DRAIN_LIMIT_S) == [Halt(1)]


def test_the_context_that_is_served_already_costs_no_new_server() -> None:
    machine = ready()
    machine.swap_error = "no room for another"
    assert machine.change(replace(WISH), 2, beside=True) == []
    assert (machine.state, machine.changing, machine.swap_error) == (State.READY, False, "")


@pytest.mark.parametrize("beside", [True, False])
def test_a_swap_whose_server_dies_goes_back(beside: bool) -> None:
    machine = ready()
    actions = machine.change(LARGER, 2, beside=beside)
    if not beside:
        assert actions == [Halt(1)]
        actions = machine.server_ended(1, "", (), 3)
    assert actions == [Launch(2, LARGER)]
    actions = machine.server_ended(2, "not enough memory", (), 4)
    assert machine.swap_error.startswith("not enough memory")
    assert machine.wish == WISH
    assert not machine.changing
    if beside:
        assert actions == []
        assert machine.state is State.READY
    else:
        assert actions == [Launch(3, WISH)]


ON_DEMAND = replace(WISH, on_demand=True)


def asleep() -> Deployment:
    machine = ready(ON_DEMAND)
    assert machine.unload() == [Halt(1)]
    assert machine.server_ended(1, "", (), 21) == []
    assert machine.state is State.ASLEEP
    return machine


def test_a_server_that_is_placed_elsewhere_and_fails_is_no_change_to_take_back() -> None:
    machine = ready()
    elsewhere = Placement((Share(0, "CUDA0", 9),))
    machine.unload()
    machine.server_ended(1, "stopped", (), 1.0)
    [launched] = machine.wake(2.0)
    assert isinstance(launched, Launch)
    machine.place(1, elsewhere)  # one that has ended
    assert machine.wish.placement is None
    machine.place(launched.generation, elsewhere)
    machine.server_ended(launched.generation, "no memory", (), 3.0)
    assert (machine.state, machine.swap_error) == (State.FAILED, "")
    assert machine.next_deadline() is not None


def test_another_second_name_needs_no_other_server() -> None:
    machine = ready()
    machine.rename("house-model")
    assert machine.wish == machine.proven
    assert machine.wish.options.alias == "house-model"
    assert machine.state is State.READY


def test_a_model_makes_room_only_while_no_request_is_in_progress() -> None:
    machine = ready(ON_DEMAND)
    machine.lease(2)
    assert machine.unload() == []
    machine.closing = True
    assert machine.lease(4) == (None, []), "it is to make room"
    assert machine.release(1, 5) == []
    assert machine.unload() == [Halt(1)]
    machine.server_ended(1, "", (), 7)
    assert (machine.state, machine.closing) == (State.ASLEEP, False)
    assert machine.lease(8) == (None, [Launch(2, ON_DEMAND)])


def test_a_wait_for_room_has_no_limit_and_a_load_has_one() -> None:
    machine = asleep()
    machine.lease(30)
    machine.wait_for_room(2)
    assert machine.next_deadline() is None
    machine.begin_load(2, 500)
    assert machine.next_deadline() == 600
    machine.server_ready(2, 4096, 508)
    assert machine.load_s == 8.0


def test_a_load_that_nobody_waits_for_any_more_is_given_up_before_it_begins() -> None:
    machine = asleep()
    machine.lease(30)
    assert machine.withdraw() == [Halt(2)]
    assert machine.lease(31) == (None, []), "the next one waits for its end"
    assert machine.server_ended(2, "", (), 32) == []
    assert machine.state is State.ASLEEP
    assert ready().withdraw() == [], "one that serves is not given up"


def test_after_a_restart_a_model_on_demand_is_loaded_only_if_somebody_asks() -> None:
    quiet, asked = (Deployment(ON_DEMAND, proven=ON_DEMAND) for _ in range(2))
    for machine in (quiet, asked):
        machine.deploy()
    assert asked.lease(1) == (None, [])
    assert quiet.download_done(2) == []
    assert quiet.state is State.ASLEEP
    assert asked.download_done(2) == [Launch(1, ON_DEMAND)]
    new = Deployment(ON_DEMAND)
    new.deploy()
    assert new.download_done(2) == [Launch(1, ON_DEMAND)], "whether it loads is not known yet"


def test_a_failing_model_on_demand_is_tried_again_by_a_request_only_and_ever_more_rarely() -> None:
    machine, now, pauses = asleep(), 30.0, []
    for generation in range(2, 16):
        _, actions = machine.lease(now)
        assert actions == [Launch(generation, ON_DEMAND)]
        machine.server_ended(generation, "no luck", (), now)
        assert machine.state is State.FAILED
        assert machine.lease(now) == (None, []), "it is loaded again and again"
        deadline = machine.next_deadline()
        assert deadline is not None
        pauses.append(deadline - now)
        now = deadline
        assert machine.handle_timeout(now) == []
        assert (machine.state, machine.reason) == (State.ASLEEP, "no luck")
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (1.0, 600.0)


def test_a_server_with_less_context_than_asked_for_is_no_success() -> None:
    machine = ready()
    machine.change(LARGER, 2, beside=True)
    assert machine.server_ready(2, 4096, 3) == [Halt(2)]
    assert "4096 tokens" in machine.swap_error
    machine.server_ended(2, "", (), 4)
    assert (machine.state, machine.serving, machine.wish) == (State.READY, 1, WISH)


def test_the_way_back_waits_until_the_failed_server_has_freed_its_memory() -> None:
    machine = ready()
    machine.change(LARGER, 2, beside=False)
    machine.server_ended(1, "", (), 3)
    assert machine.server_ready(2, 4096, 4) == [Halt(2)]
    assert machine.server_ended(2, "", (), 5) == [Launch(3, WISH)]


def test_a_first_start_that_fails_is_tried_a_few_times_and_then_left() -> None:
    machine = Deployment(WISH)
    machine.deploy()
    [launch] = machine.download_done(0)
    now = 0.0
    for tried in range(START_TRIES):
        assert isinstance(launch, Launch)
        assert machine.server_ended(launch.generation, "rejected", ("why",), now) == []
        assert (machine.state, machine.reason, machine.log_tail) == (
            State.FAILED,
            "rejected",
            ("why",),
        )
        deadline = machine.next_deadline()
        if tried == START_TRIES - 1:
            assert deadline is None
            break
        assert deadline is not None
        now = deadline
        [launch] = machine.handle_timeout(now)


def test_a_server_that_hangs_while_loading_is_stopped() -> None:
    machine = Deployment(WISH)
    machine.deploy()
    machine.download_done(0)
    assert machine.handle_timeout(100) == [Halt(1)]
    assert "still loading after 100 s" in machine.reason
    retry = machine.next_deadline()
    assert retry is not None
    assert machine.handle_timeout(retry) == []  # the hung one has not ended yet
    machine.server_ended(1, "", (), retry)
    later = machine.next_deadline()
    assert later is not None
    assert machine.handle_timeout(later) == [Launch(2, WISH)]


def test_callers_wait_for_a_server_that_crashed_once_and_not_for_one_that_always_crashes() -> None:
    machine = ready()
    for crash in range(1, START_TRIES + 1):
        machine.server_ended(crash, "it crashed", (), 2 * crash)
        assert machine.given_up is (crash == START_TRIES)
        retry_at = machine.next_deadline()
        assert retry_at is not None
        machine.handle_timeout(retry_at)
        assert not machine.given_up
        machine.server_ready(crash + 1, 4096, retry_at)


def test_callers_do_not_wait_for_a_download_that_is_tried_again_in_minutes() -> None:
    machine = Deployment(WISH)
    machine.deploy()
    machine.download_failed("the hub is away", 1, may_pass=True)
    assert machine.given_up
    machine.handle_timeout(1 + DOWNLOAD_RETRY_S)
    assert not machine.given_up


def test_a_server_that_crashes_always_comes_back_ever_more_slowly() -> None:
    machine, waits = ready(), []
    now, generation = 2.0, 1
    for _ in range(9):
        machine.server_ended(generation, "crashed", (), now)
        deadline = machine.next_deadline()
        assert deadline is not None
        waits.append(deadline - now)
        now = deadline
        [launch] = machine.handle_timeout(now)
        assert isinstance(launch, Launch)
        generation = launch.generation
        machine.server_ready(generation, 4096, now)
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == 60


def test_a_hub_that_was_away_is_asked_again() -> None:
    machine = Deployment(WISH)
    machine.deploy()
    machine.download_failed("no route", 10, may_pass=True)
    assert machine.state is State.FAILED
    assert machine.handle_timeout(10 + DOWNLOAD_RETRY_S) == [StartDownload()]


def test_an_idle_model_sleeps_and_a_request_wakes_it() -> None:
    machine = ready(replace(WISH, idle_unload_s=60))
    assert machine.next_deadline() == 61
    machine.lease(30)
    assert machine.next_deadline() is None
    machine.release(1, 40)
    assert machine.handle_timeout(100) == [Halt(1)]
    assert machine.server_ended(1, "", (), 101) == []
    assert machine.state is State.ASLEEP
    [launch] = machine.lease(102)[1]
    assert isinstance(launch, Launch)


def test_removing_finishes_what_is_being_answered() -> None:
    machine = ready()
    machine.lease(2)
    assert machine.remove(3) == []
    assert machine.state is State.DRAINING
    assert machine.release(1, 4) == [Halt(1)]
    assert machine.server_ended(1, "", (), 5) == [DeleteFiles()]
    assert machine.in_flight == 0


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: what was launched is known, halted once at most, and in
    the end, when every server ends and time goes on, the machine comes to rest."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Deployment(WISH)
        self.now = 0.0
        self.running: set[int] = set()
        self.halted: set[int] = set()
        self.leases: list[int] = []
        self.gone = False
        self.downloading = False
        self.do(self.machine.deploy())

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case StartDownload():
                    self.downloading = True
                case Launch(generation, _):
                    assert generation not in self.running
                    assert not self.gone
                    self.running.add(generation)
                case Halt(generation):
                    assert generation in self.running
                    assert generation not in self.halted
                    self.halted.add(generation)
                case DeleteFiles():
                    assert not self.running
                    self.gone = True

    @rule(ok=st.booleans())
    @precondition(lambda self: self.downloading)
    def download_ends(self, ok: bool) -> None:
        self.downloading = False
        if ok:
            self.do(self.machine.download_done(self.now))
        else:
            self.do(self.machine.download_failed("no", self.now, may_pass=True))

    @rule(pick=st.integers(0, 9), short=st.booleans())
    @precondition(lambda self: self.running)
    def ready(self, pick: int, short: bool) -> None:
        generation = sorted(self.running)[pick % len(self.running)]
        context = 512 if short else self.machine.wish.context_tokens
        self.do(self.machine.server_ready(generation, context, self.now))

    @rule(pick=st.integers(0, 9))
    @precondition(lambda self: self.running)
    def ended(self, pick: int) -> None:
        generation = sorted(self.running)[pick % len(self.running)]
        self.running.discard(generation)
        self.halted.discard(generation)
        self.do(self.machine.server_ended(generation, "ended", (), self.now))

    @rule()
    @precondition(lambda self: not self.gone)
    def make_room(self) -> None:
        busy = self.machine.in_flight
        actions = self.machine.unload()
        assert not (busy and actions), "a busy server was stopped"
        self.do(actions)

    @rule()
    @precondition(lambda self: not self.gone)
    def nobody_waits_any_more(self) -> None:
        self.do(self.machine.withdraw())

    @rule()
    @precondition(lambda self: not self.gone)
    def wake(self) -> None:
        self.do(self.machine.wake(self.now))

    @rule()
    def wait_for_room(self) -> None:
        if self.machine.loading is not None:
            self.machine.wait_for_room(self.machine.loading)

    @rule()
    def begin_load(self) -> None:
        if self.machine.loading is not None:
            self.machine.begin_load(self.machine.loading, self.now)

    @rule(closing=st.booleans())
    def close(self, closing: bool) -> None:
        self.machine.closing = closing

    @rule(
        context=st.sampled_from([2048, 4096, 8192]), beside=st.booleans(), on_demand=st.booleans()
    )
    @precondition(lambda self: not self.gone)
    def change(self, context: int, beside: bool, on_demand: bool) -> None:
        wish = replace(WISH, context_tokens=context, idle_unload_s=50, on_demand=on_demand)
        self.do(self.machine.change(wish, self.now, beside=beside))

    @rule()
    @precondition(lambda self: not self.gone)
    def lease(self) -> None:
        generation, actions = self.machine.lease(self.now)
        self.do(actions)
        if generation is not None:
            assert generation in self.running
            self.leases.append(generation)

    @rule()
    @precondition(lambda self: self.leases)
    def release(self) -> None:
        self.do(self.machine.release(self.leases.pop(), self.now))

    @rule(step=st.sampled_from([0.5, 10, 200]))
    def time_passes(self, step: float) -> None:
        self.now += step
        self.do(self.machine.handle_timeout(self.now))

    @rule()
    @precondition(lambda self: not self.gone)
    def remove(self) -> None:
        self.do(self.machine.remove(self.now))

    @rule()
    @precondition(lambda self: not self.gone and self.machine.state is State.FAILED)
    def deploy_again(self) -> None:
        self.do(self.machine.deploy())

    @invariant()
    def time_is_never_asked_for_in_vain(self) -> None:
        deadline = self.machine.next_deadline()
        if deadline is not None and deadline <= self.now:
            self.do(self.machine.handle_timeout(self.now))
            after = self.machine.next_deadline()
            assert after is None or after > self.now

    @invariant()
    def what_serves_runs(self) -> None:
        if self.machine.serving is not None:
            assert self.machine.serving in self.running

    @invariant()
    def the_state_tells_whether_it_serves(self) -> None:
        if self.machine.state is State.READY:
            assert self.machine.serving is not None
        if self.machine.state in (State.FAILED, State.ASLEEP, State.ABSENT, State.DOWNLOADING):
            assert self.machine.serving is None

    def teardown(self) -> None:
        """Removed at the end, everything ends."""
        if not self.gone:
            self.do(self.machine.remove(self.now))
        for _ in range(200):
            self.now += 200
            self.do(self.machine.handle_timeout(self.now))
            for generation in list(self.running & self.halted):
                self.running.discard(generation)
                self.halted.discard(generation)
                self.do(self.machine.server_ended(generation, "", (), self.now))
        assert self.gone
        assert not self.running


AnyOrder.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
