"""A node and a relay are not upgraded in the same minute: today's end against recorded peers.

What a peer said is in protocol/vectors/peers, word for word; a player says it again. Only what
depends on the other end is filled in: signatures, and how many bytes have come. Each recording is
also played as a newer minor version would say it (every array longer, every map with more keys) and
as an older one would (what is optional left out). SPEC section 10.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import pytest

from wai_protocol import frames as f
from wai_protocol.errors import Fault
from wai_protocol.events import (
    CallReceived,
    DataReceived,
    Event,
    GoAwayReceived,
    HeadersReceived,
    NodeEvent,
    ReplyReceived,
    StatusReceived,
    StreamEnded,
    StreamOpened,
    StreamReset,
)
from wai_protocol.frames import FrameType, pack
from wai_protocol.handshake import (
    Hello,
    NodeHandshake,
    RelayHandshake,
    Welcome,
    node_transcript,
    relay_transcript,
)
from wai_protocol.identity import NodeKey, RelayKey, node_id
from wai_protocol.limits import Limits
from wai_protocol.session import Role, Session
from wai_protocol.status import (
    CONTINUE_FINAL_MESSAGE,
    PER_TOKEN_TIMINGS,
    ModelStatus,
    NodeStatus,
)

PEERS: Final = sorted((Path(__file__).parents[2] / "protocol/vectors/peers").glob("*.json"))
NODE: Final = NodeKey(bytes(range(32)))
RELAY: Final = RelayKey(bytes(range(32, 64)))
SECRET: Final = bytes(range(128, 144))
SESSION: Final = bytes(range(144, 160))
BODY: Final = {1: b"one two", 2: b"half whole"}

Change = Callable[[list[Any]], list[Any]]


def as_recorded(frame: list[Any]) -> list[Any]:
    return frame


def as_newer(frame: list[Any]) -> list[Any]:
    """The frame of a peer that is one minor version ahead."""
    kind, *fields = frame
    if kind == FrameType.HELLO:
        fields[0] = [*fields[0], 2]
    if kind in (FrameType.RESET, FrameType.GOAWAY):
        fields[0 if kind == FrameType.GOAWAY else 1] = 9_999  # a code that nobody knows here
    grown = [_grown(field) for field in fields]
    return [kind, *grown, {"from": "a newer version"}, [1, None]]


def _grown(field: Any) -> Any:
    if isinstance(field, dict):
        return {key: _grown(value) for key, value in field.items()} | {"new": [1, {"a": None}]}
    if isinstance(field, list) and all(isinstance(part, dict) for part in field):
        return [_grown(part) for part in field]
    return field


def as_older(frame: list[Any]) -> list[Any]:
    """The frame of a peer that does not know yet what is optional."""
    kind, *fields = frame
    if kind == FrameType.HELLO:
        fields[-1] = {"instance": fields[-1]["instance"]}
    elif kind == FrameType.WELCOME:
        fields[-1] = {}
    elif kind == FrameType.STATUS:
        fields[-1] = {"models": [{"id": model["id"]} for model in fields[-1]["models"]]}
    return [kind, *fields]


class Recorded:
    """A recorded peer that says its part again, step by step."""

    def __init__(self, file: Path, end: str, change: Change) -> None:
        self._end = end
        self._change = change
        said = json.loads(file.read_text(encoding="utf-8"))["said"]
        self._steps = [
            (step, [bytes.fromhex(one["bytes"]) for one in all_said if one["from"] == end])
            for step, all_said in groupby(said, key=lambda one: one["step"])
        ]
        self._heard = f.FrameDecoder()
        self.received = 0
        """How many of the other end's session bytes have come."""

    def hear(self, data: bytes) -> None:
        """Today's end says something: count it, and answer nothing."""
        self._heard.feed(data)
        at = self._heard.position
        while (item := self._heard.next_frame()) is not None:
            if item[0] >= f.FIRST_SESSION_TYPE:
                self.received += self._heard.position - at
            at = self._heard.position

    def next_step(self, expected: str) -> bytes:
        """What it says in the next step."""
        step, said = self._steps.pop(0)
        assert step == expected
        return b"".join(self._again(frame) for frame in _frames(b"".join(said)))

    def _again(self, frame: list[Any]) -> bytes:
        frame = self._change(frame)
        if frame[0] == FrameType.HELLO or frame[0] == FrameType.WELCOME:
            at = 4 if frame[0] == FrameType.HELLO else 2
            frame[at] = self.received
        elif frame[0] == FrameType.ACK:
            frame[1] = self.received
        return pack(frame)


def _frames(data: bytes) -> Iterator[list[Any]]:
    decoder = f.FrameDecoder()
    decoder.feed(data)
    while (item := decoder.next_frame()) is not None:
        yield item


def _signed(raw: bytes, at: int, signature: bytes) -> bytes:
    (frame,) = _frames(raw)
    frame[at] = signature
    return pack(frame)


class NodeMet:
    """A recorded node, and today's relay that it talks to."""

    def __init__(self, file: Path, change: Change) -> None:
        self.peer = Recorded(file, "node", change)
        self.relay = Session(Role.RELAY)
        self.events: list[Event] = []

    def connect(self, *, resume: bool) -> None:
        handshake = RelayHandshake(RELAY, nonce=bytes(32), endpoint_hashes=None)
        hello = self.peer.next_step("hello")
        assert handshake.receive_data(hello) is None
        challenge = handshake.bytes_to_send()
        self.peer.next_step("challenge")
        proof = NODE.sign(node_transcript(hello, challenge, None if resume else SECRET))
        claim = handshake.receive_data(_signed(self.peer.next_step("proof"), 1, proof))
        assert claim is not None
        assert (claim.hello.session, claim.hello.public) == (
            SESSION if resume else None,
            NODE.public,
        )
        self.peer.next_step("welcome")
        count = self.relay.received
        handshake.accept(Welcome(SESSION, count, resume, node_id(NODE.public), "box", Limits()))
        self.relay.attach(claim.hello.received, 0.0, peer=claim.hello.limits)
        self.step("attached")

    def step(self, name: str) -> None:
        self.peer.hear(self.relay.bytes_to_send())
        self.events += self.relay.receive_data(self.peer.next_step(name), 0.0)
        self.peer.hear(self.relay.bytes_to_send())

    def cut(self) -> None:
        self.relay.detach()


class RelayMet:
    """A recorded relay, and today's node that has dialled it."""

    def __init__(self, file: Path, change: Change) -> None:
        self.peer = Recorded(file, "relay", change)
        self.node = Session(Role.NODE)
        self.events: list[Event] = []

    def connect(self, *, resume: bool) -> None:
        count = self.node.received if resume else 0
        hello = Hello(NODE.public, "box", b"", SESSION if resume else None, count, instance="i1")
        secret = None if resume else SECRET
        handshake = NodeHandshake(NODE, hello, relay_public=RELAY.public, invite_secret=secret)
        said = handshake.bytes_to_send()
        self.peer.next_step("hello")
        nonce_signed = RELAY.sign(relay_transcript(said, bytes(32)))
        challenge = _signed(self.peer.next_step("challenge"), 4, nonce_signed)
        assert handshake.receive_data(challenge) is None
        assert handshake.bytes_to_send()
        self.peer.next_step("proof")
        welcome = handshake.receive_data(self.peer.next_step("welcome"))
        assert welcome is not None
        assert (welcome.session, welcome.resumed, welcome.name) == (SESSION, resume, "box")
        self.node.attach(welcome.received, 0.0, peer=welcome.limits)
        self.step("attached")

    def step(self, name: str) -> None:
        self.peer.hear(self.node.bytes_to_send())
        self.events += self.node.receive_data(self.peer.next_step(name), 0.0)
        self.peer.hear(self.node.bytes_to_send())

    def cut(self) -> None:
        self.node.detach()


def kinds(events: list[Event]) -> list[type]:
    return [type(event) for event in events]


pytestmark = [
    pytest.mark.parametrize("change", [as_recorded, as_newer, as_older]),
    pytest.mark.parametrize("file", PEERS, ids=lambda file: file.stem),
]


def test_todays_relay_serves_by_another_versions_node(file: Path, change: Change) -> None:
    met = NodeMet(file, change)
    relay = met.relay
    met.connect(resume=False)
    met.step("status")
    relay.open_stream("POST", "/v1/completions", [(b"accept", b"*/*")], "m", end=False)
    relay.send_data(1, b"ask")
    relay.end_stream(1)
    met.step("ask")
    met.step("answer")
    relay.call("deploy", {"model": "m"})
    met.step("call")
    met.step("reply")
    relay.open_stream("POST", "/v1/completions", [], "m", end=True)
    met.step("ask again")
    met.step("half")
    met.cut()
    met.connect(resume=True)
    met.step("rest")
    relay.open_stream("POST", "/v1/completions", [], "m", end=True)
    met.step("ask in vain")
    met.step("refusal")
    relay.go_away(Fault.DRAINING, "the relay is stopping", reconnect_in_s=1.0)
    met.step("farewell")

    status = next(event.status for event in met.events if isinstance(event, StatusReceived))
    assert [model.id for model in status.models] == ["m"]
    assert status.models[0].capabilities == ()  # not told, and its upstream `u` is of no known kind
    for stream, body in BODY.items():
        got = [event for event in met.events if isinstance(event, DataReceived)]
        assert b"".join(event.data for event in got if event.stream == stream) == body
    assert [event.status for event in met.events if isinstance(event, HeadersReceived)] == [200] * 2
    assert [event.stream for event in met.events if isinstance(event, StreamEnded)] == [1, 2]
    (reply,) = [event for event in met.events if isinstance(event, ReplyReceived)]
    assert (reply.ok, reply.value["started"]) == (True, True)
    (told,) = [event for event in met.events if isinstance(event, NodeEvent)]
    assert (told.name, told.value["done"]) == ("progress", 0.5)
    (reset,) = [event for event in met.events if isinstance(event, StreamReset)]
    assert reset.fault is (Fault.INTERNAL if change is as_newer else Fault.OVERLOADED)
    assert GoAwayReceived in kinds(met.events)
    assert relay.streams == 0


def test_a_released_nodes_llama_server_keeps_its_capabilities(file: Path, change: Change) -> None:
    said = json.loads(file.read_text(encoding="utf-8"))["said"]
    [status] = [
        change(frame)
        for one in said
        if one["from"] == "node"
        for frame in _frames(bytes.fromhex(one["bytes"]))
        if frame[0] == FrameType.STATUS
    ]
    for model in status[1]["models"]:
        model["upstream"] = "llama-server@127.0.0.1:8080"
    [model] = NodeStatus.from_wire(status[1]).models
    assert model.capabilities == (PER_TOKEN_TIMINGS, CONTINUE_FINAL_MESSAGE)


def test_todays_node_serves_another_versions_relay(file: Path, change: Change) -> None:
    met = RelayMet(file, change)
    node = met.node
    met.connect(resume=False)
    node.send_status(NodeStatus((ModelStatus("m", "u"),), version="2"))
    met.step("status")
    met.step("ask")
    node.send_headers(1, 200, [])
    node.send_data(1, b"one two")
    node.end_stream(1)
    met.step("answer")
    met.step("call")
    node.reply(1, {"started": True})
    met.step("reply")
    met.step("ask again")
    node.send_headers(2, 200, [])
    node.send_data(2, b"half ")
    met.step("half")
    met.cut()
    node.send_data(2, b"whole")
    node.end_stream(2)
    met.connect(resume=True)
    met.step("rest")
    met.step("ask in vain")
    node.reset_stream(3, Fault.OVERLOADED, "no slot")
    met.step("refusal")
    met.step("farewell")

    opened = [event for event in met.events if isinstance(event, StreamOpened)]
    assert [(event.stream, event.path, event.model) for event in opened] == [
        (stream, "/v1/completions", "m") for stream in (1, 2, 3)
    ]
    asked = [event.data for event in met.events if isinstance(event, DataReceived)]
    assert asked == [b"ask"]
    (call,) = [event for event in met.events if isinstance(event, CallReceived)]
    assert (call.method, call.params["model"]) == ("deploy", "m")
    (going,) = [event for event in met.events if isinstance(event, GoAwayReceived)]
    assert going.fault is (Fault.INTERNAL if change is as_newer else Fault.DRAINING)
    assert going.reconnect_in_s == 1.0
    assert node.streams == 0
