"""Two machines with one copied identity are told from one machine that was restarted."""

from __future__ import annotations

from wai_relay.fleet.instances import KNOWN_FOR_S, MAX_KNOWN, Instances, InstanceVerdict


def test_a_restart_is_no_copy() -> None:
    instances = Instances()
    for run in range(50):
        before = {str(run - 1)} if run else set()
        assert instances.judge(str(run), before, run) is not InstanceVerdict.REFUSE
        assert not instances.admitted(str(run), before, run)
    assert not instances.is_copied(50.0)


def test_a_second_run_is_let_in_only_if_the_first_does_not_answer() -> None:
    instances = Instances()
    instances.admitted("first", set(), 0.0)
    assert instances.judge("second", {"first"}, 1.0) is InstanceVerdict.ASK


def test_a_run_without_a_name_is_not_judged() -> None:
    assert Instances().judge("", {"first"}, 0.0) is InstanceVerdict.ADMIT


def test_a_copy_is_refused_while_the_first_waits_for_its_next_connection() -> None:
    instances = Instances()
    instances.admitted("first", set(), 0.0)
    assert instances.refused("copy", 1.0)
    assert instances.is_copied(2.0)
    assert instances.judge("copy", {"first"}, 20.0) is InstanceVerdict.REFUSE


def test_a_copy_has_the_place_once_the_first_has_left_it() -> None:
    instances = Instances()
    instances.admitted("first", set(), 0.0)
    instances.refused("copy", 1.0)
    assert instances.judge("copy", set(), 20.0) is InstanceVerdict.ADMIT
    assert not instances.admitted("copy", set(), 20.0)
    assert instances.judge("third", {"copy"}, 21.0) is InstanceVerdict.ASK


def test_a_copy_that_came_while_the_first_was_away_is_found_out_by_the_firsts_return() -> None:
    instances = Instances()
    instances.admitted("first", set(), 0.0)
    instances.admitted("copy", {"first"}, 10.0)  # as a restart would
    assert instances.judge("first", {"copy"}, 15.0) is InstanceVerdict.ADMIT
    assert instances.admitted("first", {"copy"}, 15.0)
    assert instances.is_copied(15.0)
    assert instances.judge("copy", {"first"}, 16.0) is InstanceVerdict.REFUSE


def test_the_log_hears_of_a_copy_once_and_again_when_it_lasts() -> None:
    instances = Instances()
    instances.admitted("first", set(), 0.0)
    said = [instances.refused("copy", 15.0 * n) for n in range(80)]
    assert said.count(True) == 2


def test_what_is_long_ago_is_forgotten() -> None:
    instances = Instances()
    instances.admitted("first", set(), 0.0)
    instances.refused("copy", 0.0)
    assert not instances.is_copied(KNOWN_FOR_S)
    assert instances.judge("copy", {"first"}, KNOWN_FOR_S) is InstanceVerdict.ASK


def test_one_that_was_connected_for_days_is_known_when_it_comes_back_after_a_copy() -> None:
    instances, days = Instances(), 1000 * KNOWN_FOR_S
    instances.admitted("first", set(), 0.0)
    instances.judge("copy", {"first"}, days)
    instances.admitted("copy", {"first"}, days)
    assert instances.judge("first", {"copy"}, days + 5) is InstanceVerdict.ADMIT
    assert instances.admitted("first", {"copy"}, days + 5)


def test_a_program_that_is_restarted_for_ever_takes_no_memory() -> None:
    instances = Instances()
    for run in range(10 * MAX_KNOWN):
        instances.judge(str(run), set(), 0.0)
        instances.admitted(str(run), set(), 0.0)
    assert len(instances._runs) <= MAX_KNOWN + 1
