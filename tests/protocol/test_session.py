"""A session against peers that break its rules, and the corners of a stream's life."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.session_pair import SessionPair, refused
from wai_protocol.errors import Fault, LocalProtocolError, RemoteProtocolError, WaiError
from wai_protocol.events import (
    CallReceived,
    DataReceived,
    GoAwayReceived,
    HeadersReceived,
    ReplyReceived,
    StatusReceived,
    StreamEnded,
    StreamReset,
)
from wai_protocol.limits import MAX_CALLS, MAX_DATA_BYTES, MAX_UNDELIVERED_BYTES, Limits
from wai_protocol.session import Role, Session
from wai_protocol.status import ModelStatus, NodeStatus

OPEN = [16, 1, "POST", "/v1/x", [], "m", False]
HEAD = [17, 1, 200, []]


def wire(*items: list[Any]) -> bytes:
    return b"".join(map(msgpack.packb, items))


def for_ever(step: Callable[[int], None]) -> None:
    for number in range(1, 10_000):
        step(number)


def pair(**limits: Any) -> SessionPair:
    made = SessionPair(Limits(**limits), Limits(**limits))
    made.connect()
    made.settle()
    return made


def opened(made: SessionPair, *, end: bool = False, head: bool = True) -> int:
    """A stream that both ends know, with its head if asked for."""
    stream = made.relay.session.open_stream("POST", "/v1/x", [], "m", end=end)
    made.settle()
    if head:
        made.node.session.send_headers(stream, 200, [])
        made.settle()
    return stream


@pytest.mark.parametrize(
    "items",
    [
        [[18, 1, b"x"]],  # never opened
        [[19, 1]],
        [[20, 1, 1, ""]],
        [[21, 1, 5]],
        [OPEN, OPEN],
        [[*OPEN[:1], 5, *OPEN[2:]], OPEN],  # numbers go back
        [[*OPEN[:1], 0, *OPEN[2:]]],
        [OPEN, HEAD],  # from the wrong side
        [[22, {}]],
        [[24, 1, True, None]],
        [[25, 0, "x", None]],
        [OPEN, [18, 1, b""]],
        [OPEN, [18, 1, b"x" * (MAX_DATA_BYTES + 1)]],
        [OPEN, [18, True, b"x"]],
        [OPEN, [18, 1, "text"]],
        [OPEN, [18, 1]],
        [OPEN, [19, 1], [18, 1, b"x"]],
        [OPEN, [19, 1], [19, 1]],
        [OPEN, [21, 1, 0]],
        [OPEN, [21, 1, 1 << 41]],
        [[23, 1, "x", {}], [23, 1, "x", {}]],
        [[5, 10_000]],  # an ACK of what was never sent
        [[0, [1]]],  # a handshake's frame
    ],
)
def test_a_relay_that_breaks_the_rules_is_refused(items: list[list[Any]]) -> None:
    refused(pair().node, wire(*items))


@pytest.mark.parametrize(
    "items",
    [
        [OPEN],
        [[23, 1, "x", {}]],
        [[18, 1, b"x"]],  # before its HEADERS
        [[19, 1]],
        [HEAD, HEAD],
        [[17, 1, 199, []]],
        [[17, 1, 600, []]],
        [HEAD, [19, 1], [18, 1, b"x"]],
        [HEAD, [19, 1], HEAD],
        [[18, 2, b"x"]],
        [[24, 1, True, None]],
        [[22, {"models": [{}]}]],
    ],
)
def test_a_node_that_breaks_the_rules_is_refused(items: list[list[Any]]) -> None:
    made = pair()
    opened(made, head=False)
    refused(made.relay, wire(*items))


def test_more_than_the_credit_ends_the_session_as_such() -> None:
    made = pair(stream_window_bytes=10)
    opened(made, head=False)
    assert refused(made.relay, wire(HEAD, [18, 1, b"x" * 11])).fault is Fault.FLOW_CONTROL


def test_events_before_a_broken_frame_are_not_lost() -> None:
    made = pair()
    opened(made, head=False)
    refused(made.relay, wire(HEAD, [18, 1, b"first"], [99]))
    assert DataReceived(1, b"first") in made.relay.session.take_events()


@given(st.binary(max_size=120), st.integers(0, 1 << 30))
def test_bytes_from_anywhere_are_only_ever_refused(garbage: bytes, seed: int) -> None:
    made = pair()
    opened(made)
    stream = wire([18, 1, b"x" * 20], [19, 1], [21, 1, 9], [20, 1, 1, "r"])
    at = seed % len(stream)
    for end in made.ends:
        try:
            end.session.receive_data(stream[:at] + garbage + stream[at:], made.now)
        except RemoteProtocolError:
            continue


def test_late_frames_of_a_stream_that_is_over_are_dropped() -> None:
    made = pair()
    stream = opened(made)
    made.node.write(stream, 100)
    made.node.session.end_stream(stream)
    made.node.pump()
    made.relay.session.reset_stream(stream, Fault.CANCELLED)
    before = made.relay.session.received
    made.settle()
    assert made.relay.session.received > before  # dropped, and counted all the same
    assert made.relay.session.streams == made.node.session.streams == 0
    assert StreamReset(stream, Fault.CANCELLED, "") in made.node.events


def test_two_resets_that_cross_are_no_error() -> None:
    made = pair()
    stream = opened(made)
    made.relay.session.reset_stream(stream, Fault.CANCELLED)
    made.node.session.reset_stream(stream, Fault.UPSTREAM_BROKE)
    made.settle()
    assert not any(isinstance(e, StreamReset) for e in made.relay.events)
    # The node hears it: a relay that gives up may want to know what the stream took.
    assert sum(isinstance(e, StreamReset) for e in made.node.events) == 1


def test_a_reset_overtakes_what_is_queued_and_drops_it() -> None:
    made = pair(stream_window_bytes=10)
    stream = opened(made)
    made.node.write(stream, 5_000)
    made.settle(use=False)
    made.node.session.reset_stream(stream, Fault.UPSTREAM_BROKE, "died")
    made.settle()
    assert made.relay.got[stream] == 10
    assert made.relay.over == {stream: "reset"}
    assert not made.node.session._ready


def test_headers_go_before_data_and_the_end_after_it_without_credit() -> None:
    made = pair(stream_window_bytes=10)
    stream = opened(made, head=False)
    made.node.session.send_headers(stream, 200, [(b"a", b"b")])
    made.node.write(stream, 10)
    made.node.session.end_stream(stream)
    made.settle(use=False)  # no CREDIT ever comes
    kinds = [type(event) for event in made.relay.events]
    assert kinds == [HeadersReceived, DataReceived, StreamEnded]


def test_an_answer_may_end_before_its_request() -> None:
    made = pair()
    stream = opened(made)
    made.node.session.end_stream(stream)
    made.settle()
    assert made.relay.session.streams == made.node.session.streams == 1
    made.relay.write(stream, 100)
    made.relay.session.end_stream(stream)
    made.settle()
    assert made.node.got[stream] == 100
    assert made.relay.session.streams == made.node.session.streams == 0


def test_data_or_an_end_before_the_head_is_our_own_mistake() -> None:
    made = pair()
    stream = opened(made, head=False)
    with pytest.raises(LocalProtocolError):
        made.node.session.send_data(stream, b"x")
    with pytest.raises(LocalProtocolError):
        made.node.session.end_stream(stream)
    for status in (100, 600):
        with pytest.raises(LocalProtocolError):
            made.node.session.send_headers(stream, status, [])


def test_a_head_that_is_too_large_costs_its_stream_and_not_the_session() -> None:
    made = pair()
    stream = opened(made, head=False)
    with pytest.raises(LocalProtocolError):
        made.node.session.send_headers(stream, 200, [(b"n", b"v")] * 500)
    made.node.session.reset_stream(stream, Fault.UPSTREAM_BROKE)
    made.settle()
    with pytest.raises(WaiError) as refusal:
        made.relay.session.open_stream("GET", "/", [(b"n", b"v" * 70_000)], "", end=True)
    assert refusal.value.fault is Fault.HEAD_TOO_LARGE
    assert opened(made) == stream + 1


def test_what_is_done_to_a_stream_that_is_over_does_nothing() -> None:
    made = pair()
    stream = opened(made)
    made.relay.session.reset_stream(stream, Fault.CANCELLED)
    made.settle()
    for end in made.ends:
        assert end.session.send_data(stream, b"x")
        end.session.end_stream(stream)
        end.session.consume(stream, 10)
        end.session.reset_stream(stream, Fault.INTERNAL)
        assert end.pump() == 0


def test_both_directions_full_do_not_hold_each_other_up() -> None:
    made = pair(stream_window_bytes=1 << 20)
    for end in made.ends:
        end.session._link.window_bytes = 200_000
    stream = opened(made)
    for end in made.ends:
        end.write(stream, 1_000_000)
        while end.pump():
            pass
        assert end.session._link.room <= 0
    made.settle()
    assert made.relay.got[stream] == made.node.got[stream] == 1_000_000


def test_a_full_window_holds_back_no_reset_and_no_credit() -> None:
    made = pair(stream_window_bytes=1 << 20)
    made.node.session._link.window_bytes = 50_000
    stream, other = opened(made), opened(made)
    made.node.write(stream, 500_000)
    while made.node.pump():
        pass
    made.node.session.reset_stream(other, Fault.CANCELLED, "now")
    assert made.node.pump() > 0


def test_streams_take_turns_so_that_a_token_does_not_wait_behind_an_upload() -> None:
    made = pair(stream_window_bytes=1 << 20)
    bulk, chat = opened(made), opened(made)
    made.node.write(bulk, 1_000_000)
    made.node.pump()
    made.node.write(chat, 10)
    made.node.wire.clear()
    made.node.pump()
    unpacker = msgpack.Unpacker()
    unpacker.feed(bytes(made.node.wire))
    assert chat in [item[1] for item in unpacker][:2]


def test_an_open_beyond_the_nodes_bound_is_answered_and_costs_no_more() -> None:
    made = pair(max_streams=1)
    made.relay.session.peer_limits = Limits(max_streams=5)
    opened(made)
    second = opened(made, head=False)
    assert made.relay.over == {second: "reset"}
    assert made.node.session.streams == 1


def test_going_away_lets_what_is_on_its_way_in_and_nothing_new() -> None:
    made = pair()
    stream = made.relay.session.open_stream("POST", "/v1/x", [], "m", end=True)
    made.node.session.go_away(Fault.DRAINING, "upgrade", reconnect_in_s=1.5)
    made.settle()
    assert GoAwayReceived(Fault.DRAINING, "upgrade", 1.5) in made.relay.events
    with pytest.raises(WaiError) as refusal:
        made.relay.session.open_stream("POST", "/v1/x", [], "m", end=True)
    assert refusal.value.fault is Fault.DRAINING
    made.node.session.send_headers(stream, 200, [])
    made.node.session.end_stream(stream)
    made.settle()
    assert made.relay.over == {stream: "end"}


def test_calls_are_bounded_at_both_ends() -> None:
    made = pair()
    for _ in range(MAX_CALLS):
        made.relay.session.call("x", {})
    with pytest.raises(WaiError):
        made.relay.session.call("x", {})
    made.settle()
    made.relay.session.give_up_call(1)  # its REPLY never came
    one_too_many = made.relay.session.call("x", {})
    made.settle()
    assert not any(e.call == one_too_many for e in made.node.events if isinstance(e, CallReceived))
    told = next(e for e in made.relay.events if isinstance(e, ReplyReceived))
    assert (told.call, told.ok, told.value["code"]) == (one_too_many, False, 8)
    refused(made.node, wire([23, one_too_many, "x", {}]))


def test_an_answer_that_comes_too_late_is_dropped() -> None:
    made = pair()
    call = made.relay.session.call("x", {})
    made.settle()
    made.relay.session.give_up_call(call)
    made.node.session.reply(call, "late")
    made.settle()
    assert made.relay.replies == []
    refused(made.relay, wire([24, call + 1, True, None]))


def test_a_call_is_answered_once_however_often_the_node_tries() -> None:
    made = pair()
    call = made.relay.session.call("x", {"a": 1})
    made.settle()
    assert CallReceived(call, "x", {"a": 1}) in made.node.events
    made.node.session.reply_error(call, WaiError("no", Fault.ROUTE_REFUSED))
    made.node.session.reply(call, "again")
    made.node.session.reply(call + 7, "never asked")
    made.settle()
    assert ReplyReceived(call, ok=False, value={"code": 6, "message": "no"}) in made.relay.events
    assert made.relay.replies == [call]


def test_a_peer_that_sends_calls_but_receives_no_answers_is_cut_off() -> None:
    node = Session(Role.NODE)
    node.attach(0, 0.0)
    answer = "x" * 200_000
    kept = 0

    def ask(call: int) -> None:
        nonlocal kept
        node.receive_data(wire([23, call, "x", {}]), 0.0)
        node.reply(call, answer)
        node.bytes_to_send()
        kept = node._control_bytes + node.unacknowledged_bytes

    with pytest.raises(RemoteProtocolError) as refusal:
        for_ever(ask)
    assert refusal.value.fault is Fault.FLOW_CONTROL
    assert kept < MAX_UNDELIVERED_BYTES + node._link.window_bytes + (1 << 20)


def test_pings_without_end_cost_one_answer() -> None:
    node = pair().node.session
    node.receive_data(wire(*([6, n] for n in range(10_000))), 100.0)
    assert len(node.bytes_to_send()) < 20


def test_only_the_last_status_that_waits_is_sent() -> None:
    made = pair()
    for version in ("1", "2", "3"):
        made.node.session.send_status(NodeStatus(version=version))
    made.settle()
    got = [e.status.version for e in made.relay.events if isinstance(e, StatusReceived)]
    assert got == ["3"]


def test_a_status_that_fits_no_frame_is_cut_short_instead_of_breaking_the_session() -> None:
    made = pair()
    models = tuple(ModelStatus("m" * 250 + str(n), "u" * 250) for n in range(512))
    made.node.session.send_status(NodeStatus(models, detail={"x": "y" * 300_000}))
    made.settle()
    (status,) = [e.status for e in made.relay.events if isinstance(e, StatusReceived)]
    assert status.models == models[: len(status.models)]
    assert len(status.models) >= 200


def test_a_session_that_fails_resets_its_streams_and_refuses_its_calls() -> None:
    made = pair()
    stream = opened(made)
    call = made.relay.session.call("x", {})
    made.relay.take(made.relay.session.fail_streams(Fault.SESSION_LOST, "gone"))
    assert made.relay.over == {stream: "reset"}
    assert made.relay.replies == [call]
    made.settle()
    assert made.node.session.fail_streams(Fault.SESSION_LOST, "gone") == [
        StreamReset(stream, Fault.SESSION_LOST, "gone")
    ]


def test_an_invalid_offset_leaves_the_session_as_it_was() -> None:
    made = pair()
    stream = opened(made)
    made.node.write(stream, 5_000)
    made.node.pump()
    received = made.relay.session.received
    made.cut()
    for lie in (received + 1, 1 << 40, 1):
        with pytest.raises(RemoteProtocolError):
            made.node.session.attach(lie, made.now)
    made.connect()
    made.settle()
    assert made.relay.got[stream] == 5_000


def test_an_idle_pair_with_lazy_timers_lives_for_ever() -> None:
    """A shell arms one timer and re-arms it only when it fires: so it is often late."""
    made = pair()
    timers = {end.role: end.session.next_deadline() or 0.0 for end in made.ends}
    for _ in range(200):
        end = min(made.ends, key=lambda end: timers[end.role])
        made.now = timers[end.role] + 0.0005
        end.take(end.session.handle_timeout(made.now))
        assert not end.died, "a healthy connection was given up"
        timers[end.role] = end.session.next_deadline() or 0.0
        made.now += 0.0003
        made.settle()


def test_a_probe_without_a_connection_does_nothing() -> None:
    made = pair()
    made.cut()
    made.node.session.probe(made.now)
    assert made.node.pump() == 0
    assert made.node.session.next_deadline() is None
    made.connect()
    made.settle()
    assert made.node.session.rtt_s is not None
