"""Which of a node's sessions live: none waits for a node that will not come back into it."""

from __future__ import annotations

import asyncio
import socket

import pytest
from msgspec.structs import replace

from tests.relay.conftest import Clock
from wai_protocol.errors import AuthError, Fault, WaiError
from wai_protocol.events import DataReceived, HeadersReceived, StreamEnded, TurnEnded
from wai_protocol.frames import pack
from wai_protocol.handshake import Hello, ProvenHello
from wai_protocol.identity import NodeKey
from wai_protocol.invite import decode
from wai_protocol.limits import MAX_CALLS
from wai_protocol.session import Role, Session
from wai_protocol.status import NodeStatus
from wai_protocol.surface import Headers
from wai_relay.contracts.upstream import Spent
from wai_relay.fleet import nodes
from wai_relay.fleet.invites import InviteAddress, Invites
from wai_relay.fleet.node import Node
from wai_relay.fleet.nodes import ConnectedFleet
from wai_relay.fleet.registry import NodeRegistry
from wai_relay.fleet.session import LOADED, MAX_GIVEN_UP, SPENT, NodeSession
from wai_relay.fleet.tunnel import AdmittedNode
from wai_relay.storage import Store
from wai_transport.live_session import Ended

pytestmark = pytest.mark.anyio

KEY = NodeKey.generate()
HELLO = Hello(KEY.public, "box", b"", instance="first start", tunnel=0)


class Resets:
    """A sink that keeps why its stream ended."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def on_headers(self, status: int, headers: Headers) -> None:
        pass

    def on_data(self, data: bytes) -> None:
        pass

    def on_end(self) -> None:
        pass

    def on_reset(self, fault: Fault, reason: str) -> None:
        self.faults.append(fault)


class Rig:
    """A fleet that knows one node."""

    def __init__(self, fleet: ConnectedFleet) -> None:
        self.fleet = fleet

    @property
    def node(self) -> Node:
        (node,) = self.fleet.nodes()
        return node

    @property
    def sessions(self) -> list[NodeSession]:
        return self.node.sessions

    async def come(self, hello: Hello = HELLO) -> AdmittedNode:
        return await self.fleet.admit(ProvenHello(hello, None))


@pytest.fixture
async def rig(store: Store, clock: Clock) -> Rig:
    registry = await NodeRegistry.load(store, clock)
    invites = Invites(store, registry, clock)
    _, text = await invites.create(InviteAddress("https://relay.example", b"r" * 32, b"p" * 32))
    await invites.redeem(decode(text).secret, KEY.public, "box")
    return Rig(ConnectedFleet(registry, invites))


async def test_a_tunnel_that_lost_its_session_leaves_none_behind(rig: Rig) -> None:
    await rig.come()
    (broken,) = rig.sessions
    lost = Resets()
    broken.open("POST", "/v1/chat/completions", [], "m", lost, end=True)
    await rig.come()
    assert broken.live.ended is Ended.REPLACED
    assert lost.faults == [Fault.SESSION_LOST]
    assert len(rig.sessions) == 1


async def test_a_node_that_resumes_keeps_its_session(rig: Rig) -> None:
    first = await rig.come()
    again = await rig.come(replace(HELLO, session=first.welcome.session))
    assert again.welcome.resumed
    assert again.session is first.session
    assert first.session.ended is None


async def test_another_tunnel_of_the_node_is_left_alone(rig: Rig) -> None:
    first = await rig.come()
    await rig.come(replace(HELLO, tunnel=1))
    assert first.session.ended is None
    assert len(rig.sessions) == 2


async def test_a_session_that_finishes_what_is_in_flight_is_left_alone(rig: Rig) -> None:
    first = await rig.come()
    peer, _ = await connected(first)
    rig.fleet.go_away("the relay is stopping", reconnect_in_s=0.0)
    await rig.come()
    assert first.session.ended is None
    peer.close()


@pytest.mark.parametrize("lost_first", [True, False], ids=["before it", "after it"])
async def test_callers_of_a_relay_that_stops_wait_for_no_connection_that_cannot_come(
    rig: Rig, lost_first: bool
) -> None:
    peer, _ = await connected(await rig.come())
    (session,) = rig.sessions
    waiting = Resets()
    session.open("POST", "/v1/chat/completions", [], "m", waiting, end=True)
    if lost_first:
        session.live.drop_connection()
    rig.fleet.go_away("the relay is stopping", reconnect_in_s=1.0)
    assert waiting.faults == ([Fault.SESSION_LOST] if lost_first else [])
    if not lost_first:
        session.live.drop_connection()
    assert waiting.faults == [Fault.SESSION_LOST]
    assert not rig.sessions
    peer.close()


async def test_a_node_that_does_not_tell_its_tunnels_may_have_several_sessions(rig: Rig) -> None:
    first = await rig.come(replace(HELLO, tunnel=None))
    await rig.come(replace(HELLO, tunnel=None))
    assert first.session.ended is None


async def test_a_process_that_was_restarted_gets_no_session_of_the_one_before(rig: Rig) -> None:
    first = await rig.come()
    hello = replace(HELLO, instance="second start", session=first.welcome.session)
    assert not (await rig.come(hello)).welcome.resumed
    assert first.session.ended is Ended.REPLACED


async def test_a_node_that_said_goodbye_is_not_waited_for(rig: Rig) -> None:
    admission = await rig.come()
    ours, peer = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    transport.pause_reading()
    admission.session.attach(transport, 0)
    leaving = Session(Role.NODE)
    leaving.attach(0, 0.0)
    leaving.go_away(Fault.DRAINING, "it has joined")
    over = asyncio.Event()

    def on_change(node: Node) -> None:
        if not node.sessions:
            over.set()

    rig.fleet.on_change = on_change
    with peer:
        peer.sendall(leaving.bytes_to_send())
        peer.shutdown(socket.SHUT_WR)
        await over.wait()
    assert admission.session.ended is Ended.LEFT
    assert rig.node.state == "offline"


async def test_a_call_without_an_answer_costs_no_place_for_the_next_ones(rig: Rig) -> None:
    await rig.come()
    (session,) = rig.sessions
    for _ in range(MAX_CALLS + 1):
        with pytest.raises(WaiError) as error:
            await session.call("model.list", {}, 0.0)
        assert error.value.fault is Fault.UPSTREAM_TIMEOUT


async def test_a_node_that_never_joined_stays_out(rig: Rig) -> None:
    with pytest.raises(AuthError):
        await rig.come(replace(HELLO, public=NodeKey.generate().public))


async def test_what_a_stream_took_is_told_to_who_gave_it_up_and_to_nobody_else(rig: Rig) -> None:
    await rig.come()
    (session,) = rig.sessions
    heard: list[Spent] = []
    streams = [
        session.open("POST", "/v1/chat/completions", [], "m", Resets(), end=True) for _ in range(2)
    ]
    for stream in streams:
        stream.on_spent = heard.append
    streams[0].reset(Fault.CANCELLED)
    told = {"prompt": 9, "cached": 2, "completion": 4, "exact": True}
    for value in (
        {"stream": streams[1]._id, **told},  # that one goes on
        {"stream": 999, **told},
        {"stream": streams[0]._id, **told, "completion": -1},
        "nonsense",
        {"stream": streams[0]._id, **told},
        {"stream": streams[0]._id, **told},  # once is enough
    ):
        session._on_node_event(0, SPENT, value)
    assert heard == [Spent(9, 2, 4, exact=True)]


async def test_a_load_is_told_to_the_stream_that_waited_for_it(rig: Rig) -> None:
    await rig.come()
    (session,) = rig.sessions
    stream = session.open("POST", "/v1/chat/completions", [], "m", Resets(), end=True)
    told = {"load_ms": 8000, "room_ms": 20, "made_room": ["other"]}
    for value in (
        {"stream": 999, **told},
        {"stream": stream._id, **told, "load_ms": -1},
        {"stream": stream._id, **told, "made_room": ["x"] * 65},
        {"stream": stream._id, **told, "made_room": ["x" * 257]},
        "nonsense",
    ):
        session._on_node_event(0, LOADED, value)
    assert stream.load is None
    value = {"stream": stream._id, **told, "made_room": ["ot\x1bher"]}
    session._on_node_event(0, LOADED, value)
    assert stream.load is not None
    assert (stream.load.load_ms, stream.load.room_ms) == (8000, 20)
    assert "\x1b" not in stream.load.made_room[0]


async def test_streams_that_were_given_up_are_not_kept_for_ever(rig: Rig) -> None:
    await rig.come()
    (session,) = rig.sessions
    for _ in range(MAX_GIVEN_UP + 5):
        stream = session.open("POST", "/v1/chat/completions", [], "m", Resets(), end=True)
        stream.reset(Fault.CANCELLED)
    assert len(session._given_up) == MAX_GIVEN_UP


async def test_a_node_is_missing_from_a_start_until_it_has_said_what_it_serves(rig: Rig) -> None:
    assert rig.fleet.missing == 0  # nobody was expected
    rig.fleet.expect_all(0.0)
    assert rig.fleet.missing == 1
    await rig.come()
    assert rig.fleet.missing == 1
    rig.node.update(NodeStatus(), HELLO.instance)
    assert rig.fleet.missing == 0


async def test_a_node_that_never_comes_back_is_not_missed_for_ever(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wai_relay.fleet.nodes.MISSED_S", 0.0)
    rig.fleet.expect_all(0.0)
    assert rig.fleet.missing == 0


class Failing(Resets):
    """A sink that fails on one kind of call, as a bug in the gateway would."""

    def __init__(self, on: str) -> None:
        super().__init__()
        self.on = on

    def on_headers(self, status: int, headers: Headers) -> None:
        self._fail("headers")

    def on_data(self, data: bytes) -> None:
        self._fail("data")

    def on_end(self) -> None:
        self._fail("end")

    def _fail(self, what: str) -> None:
        if what == self.on:
            raise RuntimeError("a bug")


@pytest.mark.parametrize("on", ["headers", "data", "end"])
async def test_a_sink_that_fails_hears_that_its_answer_is_broken_and_no_other_does(
    rig: Rig, on: str
) -> None:
    await rig.come()
    (session,) = rig.sessions
    sinks = [Failing(on), Failing("nothing")]
    first, second = (
        session.open("POST", "/v1/chat/completions", [], "m", sink, end=True) for sink in sinks
    )
    events = [
        event
        for stream in (first._id, second._id)
        for event in (
            HeadersReceived(stream, 200, []),
            DataReceived(stream, b"x"),
            StreamEnded(stream),
        )
    ]
    session.live._deliver(list(events))
    assert [sink.faults for sink in sinks] == [[Fault.INTERNAL], []]
    assert session.streams == {}


async def test_a_nodes_session_takes_a_bounded_part_in_one_turn(rig: Rig) -> None:
    await rig.come()
    (session,) = rig.sessions
    session.live.core.attach(0, 0.0)
    events = session.live.core.receive_data(pack((25, 0, "x", None)) * 100, 0.0)
    assert isinstance(events[-1], TurnEnded)
    assert len(events) < 100


async def test_a_node_that_has_not_told_what_it_serves_is_not_ready_but_awaited(rig: Rig) -> None:
    node = rig.node
    assert rig.fleet.missing == 0  # no start is under way
    admission = await rig.come()
    ours, peer = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    transport.pause_reading()
    admission.session.attach(transport, 0)
    assert (node.ready, node.state, rig.fleet.missing) == (False, "starting", 1)
    node.update(NodeStatus(), "first start")  # nothing yet: a model may be deployed to it
    assert (node.ready, node.state, rig.fleet.missing) == (True, "ready", 0)
    peer.close()


async def test_models_that_a_node_cannot_tell_of_are_said_once_in_the_log(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        rig.node.update(NodeStatus(detail={"models_left_out": 88}), "first start")
    assert [record.message for record in caplog.records if "88" in record.message] == [
        "node box: 88 of its models are not served, since a node can tell of 512 at most"
    ]


async def connected(admission: AdmittedNode) -> tuple[socket.socket, Session]:
    """The other end of a connection that `admission` has now, and the node's session on it."""
    ours, peer = socket.socketpair()
    peer.setblocking(False)
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    transport.pause_reading()
    admission.session.attach(transport, 0)
    session = Session(Role.NODE)
    session.attach(0, 0.0)
    return peer, session


async def answer(peer: socket.socket, session: Session) -> None:
    """Be a machine that lives."""
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(peer, 65536):
        session.receive_data(data, 0.0)
        await loop.sock_sendall(peer, session.bytes_to_send())


async def test_a_copied_identity_is_refused_while_the_first_machine_answers(rig: Rig) -> None:
    first = await rig.come()
    peer, session = await connected(first)
    living = asyncio.ensure_future(answer(peer, session))
    for _ in range(2):
        with pytest.raises(AuthError, match="copied") as refusal:
            await rig.come(replace(HELLO, instance="copy"))
        assert refusal.value.fault is Fault.IDENTITY_COPIED
    assert first.session.ended is None
    assert first.session.attached
    assert rig.node.copied
    living.cancel()
    peer.close()


async def test_a_machine_that_lost_its_power_does_not_keep_its_next_run_out(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "PROBE_S", 0.1)
    first = await rig.come()
    peer, _ = await connected(first)  # nobody answers on it, and nobody closes it
    await rig.come(replace(HELLO, instance="after the power cut"))
    assert first.session.ended is Ended.REPLACED
    assert not rig.node.copied
    peer.close()


async def test_a_copy_that_came_while_the_first_was_reconnecting_yields_to_it(rig: Rig) -> None:
    await rig.come()  # its connection is lost
    copy = await rig.come(replace(HELLO, instance="copy"))
    first = await rig.come()
    assert copy.session.ended is Ended.REPLACED
    with pytest.raises(AuthError, match="copied"):
        await rig.come(replace(HELLO, instance="copy"))
    assert first.session.ended is None


async def test_a_node_that_drains_does_not_keep_its_next_run_out(rig: Rig) -> None:
    first = await rig.come()
    peer, session = await connected(first)
    session.go_away(Fault.DRAINING, "the node is stopping")
    peer.sendall(session.bytes_to_send())
    while not first.session.core.peer_going_away:  # noqa: ASYNC110 - a few turns of the loop
        await asyncio.sleep(0)
    living = asyncio.ensure_future(answer(peer, session))
    await rig.come(replace(HELLO, instance="second start"))
    assert not rig.node.copied
    living.cancel()
    peer.close()
