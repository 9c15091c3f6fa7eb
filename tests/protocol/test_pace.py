"""Floods of small frames: each turn takes a bounded part, and a peer that floods is cut off."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from tests.harness.session_pair import SessionPair
from wai_protocol.errors import Fault, RemoteProtocolError
from wai_protocol.events import DataReceived, NodeEvent, StatusReceived, TurnEnded
from wai_protocol.frames import FrameType
from wai_protocol.limits import TURN_COST, Limits
from wai_protocol.pace import PACES, PaceKeeper, frame_cost
from wai_protocol.session import Role, Session

OPEN = [16, 1, "POST", "/v1/x", [], "m", False]
HEAD = [17, 1, 200, []]


def wire(*items: list[Any]) -> bytes:
    return b"".join(map(msgpack.packb, items))


def relay_with_a_stream(turn_cost: int | None = None) -> Session:
    relay = Session(Role.RELAY, turn_cost=turn_cost)
    relay.attach(0, 0.0)
    relay.open_stream("POST", "/v1/x", [], "m", end=True)
    relay.call("x", {})
    relay.receive_data(wire(HEAD, [24, 1, True, None]), 0.0)
    return relay


FROM_A_NODE: dict[FrameType, list[Any]] = {
    FrameType.ACK: [5, 0],
    FrameType.PING: [6, 1],
    FrameType.PONG: [7, 999],
    FrameType.HEADERS: HEAD,
    FrameType.END: [19, 1],
    FrameType.RESET: [20, 1, 1, ""],
    FrameType.CREDIT: [21, 1, 1],
    FrameType.STATUS: [22, {}],
    FrameType.REPLY: [24, 1, True, None],
    FrameType.EVENT: [25, 0, "x", None],
    FrameType.GOAWAY: [26, 1, "", None],
}


@pytest.mark.parametrize("kind", FROM_A_NODE)
def test_a_node_that_floods_a_relay_is_cut_off(kind: FrameType) -> None:
    relay = relay_with_a_stream()
    relay.reset_stream(1, Fault.CANCELLED)  # its last frames are still on their way
    flood = wire(FROM_A_NODE[kind]) * (PACES[kind].burst + 8)
    with pytest.raises(RemoteProtocolError, match=kind.name):
        relay.receive_data(flood, 0.0)


@pytest.mark.parametrize(
    ("kind", "item"),
    [
        (FrameType.PING, [6, 1]),
        (FrameType.RESET, [20, 1, 1, ""]),
        (FrameType.CREDIT, [21, 1, 1]),
        (FrameType.GOAWAY, [26, 1, "", None]),
    ],
)
def test_a_relay_that_floods_a_node_is_cut_off(kind: FrameType, item: list[Any]) -> None:
    node = Session(Role.NODE)
    node.attach(0, 0.0)
    node.receive_data(wire(OPEN, [20, 1, 1, ""]), 0.0)
    with pytest.raises(RemoteProtocolError, match=kind.name):
        node.receive_data(wire(item) * (PACES[kind].burst + 8), 0.0)


@pytest.mark.parametrize(
    ("kind", "per_s"),
    [
        (FrameType.STATUS, 10),  # what a busy node of ours sends
        (FrameType.PING, 10),
        (FrameType.EVENT, 32),  # eight downloads
        (FrameType.CREDIT, 50_000),
        (FrameType.OPEN, 5_000),
    ],
)
def test_what_an_honest_peer_sends_for_an_hour_is_taken(kind: FrameType, per_s: int) -> None:
    keeper = PaceKeeper()
    for second in range(3600 if per_s < 100 else 30):
        for n in range(per_s):
            keeper.count(kind, second + n / per_s)


def test_a_burst_after_a_long_silence_is_taken_and_one_more_is_not() -> None:
    keeper = PaceKeeper()
    burst, per_s = PACES[FrameType.STATUS]
    for _ in range(burst):
        keeper.count(FrameType.STATUS, 0.0)
    for _ in range(burst):
        keeper.count(FrameType.STATUS, 1e6)
    for _ in range(per_s):
        keeper.count(FrameType.STATUS, 1e6 + 1)
    with pytest.raises(RemoteProtocolError):
        keeper.count(FrameType.STATUS, 1e6 + 1)


def test_as_many_events_as_resets_may_come_at_once() -> None:
    relay = Session(Role.RELAY)
    relay.attach(0, 0.0)
    count = 3 * PACES[FrameType.EVENT].burst
    for _ in range(count):
        relay.reset_stream(relay.open_stream("POST", "/v1/x", [], "m", end=True), Fault.CANCELLED)
    told = wire(*([25, 0, "spent", {"stream": n + 1}] for n in range(count)))
    assert len(relay.receive_data(told, 0.0)) == count


def test_one_turn_takes_a_bounded_part_and_the_next_ones_take_the_rest() -> None:
    pieces = 5 * TURN_COST + 3
    data = wire(*([18, 1, b"%d" % n] for n in range(pieces)), [19, 1])
    relay = relay_with_a_stream(TURN_COST)
    turns = [relay.receive_data(data, 0.0)]
    while turns[-1] and type(turns[-1][-1]) is TurnEnded:
        turns.append(relay.receive_data(b"", 0.0))
    assert all(len(turn) <= TURN_COST + 1 for turn in turns)
    got = [event for turn in turns for event in turn if isinstance(event, DataReceived)]
    assert [event.data for event in got] == [b"%d" % n for n in range(pieces)]
    assert relay.received == len(data) + len(wire(HEAD, [24, 1, True, None]))
    assert len(turns) == 6


def test_frames_that_come_in_the_middle_of_a_turn_keep_their_order() -> None:
    relay = relay_with_a_stream(8)
    data = wire(*([18, 1, b"%d" % n] for n in range(100)))
    got: list[bytes] = []
    for at in range(0, len(data), 50):
        got += (
            event.data
            for event in relay.receive_data(data[at : at + 50], 0.0)
            if isinstance(event, DataReceived)
        )
    while len(got) < 100:
        got += (e.data for e in relay.receive_data(b"", 0.0) if isinstance(e, DataReceived))
    assert got == [b"%d" % n for n in range(100)]


def test_large_and_costly_frames_fill_a_turn_sooner() -> None:
    models = [{"id": f"m{n}"} for n in range(512)]
    relay = Session(Role.RELAY, turn_cost=TURN_COST)
    relay.attach(0, 0.0)
    events = relay.receive_data(wire([22, {"models": models}]) * 20, 0.0)
    assert sum(isinstance(event, StatusReceived) for event in events) <= 2
    assert frame_cost(FrameType.EVENT, 100) > frame_cost(FrameType.CREDIT, 6)


def test_what_was_not_acted_upon_when_the_connection_died_comes_again() -> None:
    made = SessionPair(Limits(), Limits())
    made.relay.session = Session(Role.RELAY, turn_cost=TURN_COST)
    made.connect()
    made.settle()
    for n in range(200):
        made.node.session.emit("x", n)
    made.node.pump()
    made.deliver(made.node)
    first = [e.value for e in made.relay.events if isinstance(e, NodeEvent)]
    assert 0 < len(first) < 200
    made.cut()
    made.connect()
    while made.node.pump():
        made.deliver(made.node)
    while len([e for e in made.relay.events if isinstance(e, NodeEvent)]) < 200:
        made.relay.take(made.relay.session.receive_data(b"", made.now))
    assert [e.value for e in made.relay.events if isinstance(e, NodeEvent)] == list(range(200))
