"""Records one conversation between a node and a relay of this version: all bytes, both ways.

A later version is tested against the file (tests/protocol/test_version_skew.py), so that a node and
a relay need not be upgraded in the same minute. Run it once for each release, and never again for
one that was released:

    cd protocol && python -m vectors.peers.record NAME > vectors/peers/NAME.json

It says: a handshake with an invite, a status, a whole exchange, a call with an event, an exchange
that is cut in the middle and resumed on a new connection, and the farewell.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from wai_protocol.errors import Fault
from wai_protocol.handshake import Hello, NodeHandshake, RelayHandshake, Welcome
from wai_protocol.identity import NodeKey, RelayKey, node_id
from wai_protocol.limits import Limits
from wai_protocol.session import Role, Session
from wai_protocol.status import ModelStatus, NodeStatus

NODE: Final = NodeKey(bytes(range(32)))
RELAY: Final = RelayKey(bytes(range(32, 64)))
SECRET: Final = bytes(range(128, 144))
SESSION: Final = bytes(range(144, 160))


class Conversation:
    """Both ends, and what each of them has said, in order."""

    def __init__(self) -> None:
        self.said: list[dict[str, str]] = []
        self.node = Session(Role.NODE, peer=Limits())
        self.relay = Session(Role.RELAY, peer=Limits())

    def connect(self, *, resume: bool) -> None:
        """A handshake, whole; `resume`: into the session that is there."""
        hello = Hello(
            *(NODE.public, "box", b"", SESSION if resume else None),
            self.node.received if resume else 0,
            agent="wai/0.1.0",
            instance="i1",
        )
        secret = None if resume else SECRET
        node = NodeHandshake(NODE, hello, relay_public=RELAY.public, invite_secret=secret)
        relay = RelayHandshake(RELAY, nonce=bytes(32), endpoint_hashes=None)
        relay.receive_data(self._say("node", "hello", node.bytes_to_send()))
        node.receive_data(self._say("relay", "challenge", relay.bytes_to_send()))
        relay.receive_data(self._say("node", "proof", node.bytes_to_send()))
        relay.accept(
            Welcome(SESSION, self.relay.received, resume, node_id(NODE.public), "box", Limits())
        )
        node.receive_data(self._say("relay", "welcome", relay.bytes_to_send()))
        received = self.relay.received
        self.relay.attach(self.node.received, 0.0)
        self.node.attach(received, 0.0)
        self.exchange("attached")

    def exchange(self, step: str) -> None:
        """Let both say what they have to say, until neither has more."""
        while True:
            from_relay, from_node = self.relay.bytes_to_send(), self.node.bytes_to_send()
            if not (from_relay or from_node):
                return
            if from_relay:
                self.node.receive_data(self._say("relay", step, from_relay), 0.0)
            if from_node:
                self.relay.receive_data(self._say("node", step, from_node), 0.0)

    def _say(self, end: str, step: str, data: bytes) -> bytes:
        self.said.append({"from": end, "step": step, "bytes": data.hex()})
        return data


def record(name: str) -> dict[str, Any]:
    """The conversation as JSON."""
    talk = Conversation()
    node, relay = talk.node, talk.relay
    talk.connect(resume=False)
    node.send_status(NodeStatus((ModelStatus("m", "u", slots_total=4),), version="1"))
    talk.exchange("status")
    stream = relay.open_stream("POST", "/v1/completions", [(b"accept", b"*/*")], "m", end=False)
    relay.send_data(stream, b"ask")
    relay.end_stream(stream)
    talk.exchange("ask")
    node.send_headers(stream, 200, [(b"content-type", b"text/plain")])
    node.send_data(stream, b"one ")
    node.send_data(stream, b"two")
    node.end_stream(stream)
    talk.exchange("answer")
    call = relay.call("deploy", {"model": "m"})
    talk.exchange("call")
    node.reply(call, {"started": True})
    node.emit("progress", {"done": 0.5})
    talk.exchange("reply")
    stream = relay.open_stream("POST", "/v1/completions", [], "m", end=True)
    talk.exchange("ask again")
    node.send_headers(stream, 200, [])
    node.send_data(stream, b"half ")
    talk.exchange("half")
    relay.detach()
    node.detach()
    talk.connect(resume=True)
    node.send_data(stream, b"whole")
    node.end_stream(stream)
    talk.exchange("rest")
    stream = relay.open_stream("POST", "/v1/completions", [], "m", end=True)
    talk.exchange("ask in vain")
    node.reset_stream(stream, Fault.OVERLOADED, "no slot")
    talk.exchange("refusal")
    relay.go_away(Fault.DRAINING, "the relay is stopping", reconnect_in_s=1.0)
    node.go_away(Fault.DRAINING, "the node is stopping")
    talk.exchange("farewell")
    return {"name": name, "said": talk.said}


if __name__ == "__main__":
    print(json.dumps(record(sys.argv[1]), indent=1))
