"""Writes the test vectors beside this file: what another implementation of `wai/1` must agree on.

Deterministic: fixed keys, nonces and times. `python protocol/vectors/generate.py` writes them anew;
a test holds the committed files against it, and the code against the files. All bytes are hex.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from wai_protocol import frames as f
from wai_protocol.handshake import (
    Hello,
    NodeHandshake,
    RelayHandshake,
    Welcome,
    node_transcript,
    relay_transcript,
)
from wai_protocol.identity import NodeKey, RelayKey, node_id
from wai_protocol.invite import Invite
from wai_protocol.limits import Limits
from wai_protocol.session import Role, Session
from wai_protocol.status import CONTINUE_FINAL_MESSAGE, ModelStatus, NodeStatus

FOLDER: Final = Path(__file__).parent
NODE: Final = NodeKey(bytes(range(32)))
RELAY: Final = RelayKey(bytes(range(32, 64)))
NONCE: Final = bytes(range(64, 96))
CERTIFICATE_SHA256: Final = bytes(range(96, 128))
SECRET: Final = bytes(range(128, 144))
SESSION: Final = bytes(range(144, 160))


def frames() -> list[dict[str, Any]]:
    """Each session frame, and each link frame, with its fields as JSON."""
    status = NodeStatus(
        (
            ModelStatus(
                *("m", "u"),
                slots_total=4,
                capabilities=(CONTINUE_FINAL_MESSAGE,),
                aliases=("m:latest",),
                loaded=True,
                routes=frozenset({"/v1/chat/completions", "/v1/messages"}),
            ),
        ),
        version="1",
    )
    some: list[f.SessionFrame] = [
        f.Open(1, "POST", "/v1/chat/completions", [(b"accept", b"*/*")], "m", end=False),
        f.HeadersFrame(1, 200, [(b"content-type", b"text/event-stream"), (b"x", b"\xff")]),
        f.End(1),
        f.Reset(1, 1, "the caller is gone"),
        f.Credit(1, 32_768),
        f.Status(status.to_wire()),
        f.Call(1, "deploy", {"model": "m"}),
        f.Reply(1, ok=True, value={"started": True}),
        f.Reply(2, ok=False, value={"code": 6, "message": "not here"}),
        f.Event(1, "progress", {"done": 0.5}),
        f.GoAway(9, "upgrade", 0),
        f.GoAway(9, "for good", None),
    ]
    packed = [f.encode(frame) for frame in some]
    packed += [f.pack((int(f.FrameType.DATA), 1, b"data: {}\n\n"))]
    packed += [f.pack((int(kind), 70_000)) for kind in _LINK_TYPES]
    return [_row(data) for data in packed]


def refused() -> list[dict[str, str]]:
    """Bytes that a relay which has opened stream 1 must answer by closing the connection."""
    rows = {
        "DATA before its HEADERS": f.pack((18, 1, b"x")),
        "a stream that was never opened": f.pack((19, 2)),
        "a bool for a number": f.pack((19, True)),
        "a float for a number": f.pack((19, 1.0)),
        "a negative number": f.pack((19, -1)),
        "a field is missing": f.pack((20, 1, 1)),
        "OPEN from the node": f.pack((16, 2, "GET", "/", [], "", True)),
        "HEADERS with an interim status": f.pack((17, 1, 103, [])),
        "a header's name in upper case": f.pack((17, 1, 200, [b"Set-Cookie", b"a=b"])),
        "a header's name with a space": f.pack((17, 1, 200, [b"a b", b"c"])),
        "a pseudo-header": f.pack((17, 1, 200, [b":status", b"200"])),
        "a header without a name": f.pack((17, 1, 200, [b"", b"a"])),
        "a header's value with a line end": f.pack((17, 1, 200, [b"a", b"b\r\nc: d"])),
        "a header's value with a NUL": f.pack((17, 1, 200, [b"a", b"b\x00"])),
        "a header's value that begins with a space": f.pack((17, 1, 200, [b"a", b" b"])),
        "a reason of 513 characters": f.pack((20, 1, 1, "x" * 513)),
        "an odd list of headers": f.pack((17, 1, 200, [b"name"])),
        "a frame type that nobody knows": f.pack((27, 1)),
        "an empty array": b"\x90",
        "no array": b"\x01",
        "an ext": b"\x92\x13\xd4\x05\x00",
        "an ACK of what was never sent": f.pack((5, 100_000)),
    }
    return [{"why": why, "bytes": data.hex()} for why, data in rows.items()]


def handshake() -> dict[str, Any]:
    """A node that joins with an invite: all four frames, and what was signed."""
    hello = Hello(
        NODE.public, "box", CERTIFICATE_SHA256, agent="wai/0.1.0", instance="i1", tunnel=0
    )
    node = NodeHandshake(NODE, hello, relay_public=RELAY.public, invite_secret=SECRET)
    relay = RelayHandshake(RELAY, nonce=NONCE, endpoint_hashes=frozenset({CERTIFICATE_SHA256}))
    first = node.bytes_to_send()
    relay.receive_data(first)
    challenge = relay.bytes_to_send()
    node.receive_data(challenge)
    proof = node.bytes_to_send()
    welcome = Welcome(
        session=SESSION,
        received=0,
        resumed=False,
        node_id=node_id(NODE.public),
        name="box",
        limits=Limits(),
    )
    relay.receive_data(proof)
    relay.accept(welcome)
    invite = Invite("https://relay.example:8443", RELAY.public, SECRET, CERTIFICATE_SHA256)
    return {
        "invite": invite.encode(),
        "node_seed": NODE.seed.hex(),
        "node_public": NODE.public.hex(),
        "node_id": node_id(NODE.public),
        "relay_seed": RELAY.seed.hex(),
        "relay_public": RELAY.public.hex(),
        "nonce": NONCE.hex(),
        "endpoint_hash": CERTIFICATE_SHA256.hex(),
        "invite_secret": SECRET.hex(),
        "hello": first.hex(),
        "relay_signs": relay_transcript(first, NONCE).hex(),
        "challenge": challenge.hex(),
        "node_signs": node_transcript(first, challenge, SECRET).hex(),
        "proof": proof.hex(),
        "welcome": relay.bytes_to_send().hex(),
    }


def link() -> dict[str, Any]:
    """An answer that is cut within its second DATA frame, and what the next connection carries."""
    relay, node = Session(Role.RELAY), Session(Role.NODE)
    for end in (relay, node):
        end.attach(0, 0.0)
    stream = relay.open_stream("POST", "/v1/completions", [], "m", end=True)
    asked = relay.bytes_to_send()
    node.receive_data(asked, 0.0)
    node.send_headers(stream, 200, [])
    head = node.bytes_to_send()
    sent = []
    for data in (b"one ", b"two ", b"three"):
        node.send_data(stream, data)
        sent.append(node.bytes_to_send())
    node.end_stream(stream)
    sent.append(node.bytes_to_send())
    before_cut = head + sent[0] + sent[1][:5]
    relay.receive_data(before_cut, 0.0)
    received = relay.received
    for end in (relay, node):
        end.detach()
    relay.attach(node.received, 1.0)
    node.attach(received, 1.0)
    return {
        "relay_sends": asked.hex(),
        "node_sends": (head + b"".join(sent)).hex(),
        "relay_gets_before_the_cut": before_cut.hex(),
        "node_received": node.received,
        "relay_received": received,
        "node_sends_on_the_next_connection": node.bytes_to_send().hex(),
        "body": b"one two three".hex(),
    }


def credit() -> dict[str, Any]:
    """An answer of 100 bytes through a window of 40: what the node sends for each CREDIT."""
    limits = Limits(stream_window_bytes=40)
    node = Session(Role.NODE, peer=limits)
    node.attach(0, 0.0)
    node.bytes_to_send()
    asked = f.encode(f.Open(1, "GET", "/api/tags", [], "", end=True))
    node.receive_data(asked, 0.0)
    node.send_headers(1, 200, [])
    node.send_data(1, bytes(range(100)))
    node.end_stream(1)
    steps = [{"node_gets": asked.hex(), "node_sends": node.bytes_to_send().hex()}]
    for increment in (20, 39, 1):
        given = f.encode(f.Credit(1, increment))
        node.receive_data(given, 0.0)
        steps.append({"node_gets": given.hex(), "node_sends": node.bytes_to_send().hex()})
    return {"stream_window": limits.stream_window_bytes, "steps": steps}


_LINK_TYPES: Final = (f.FrameType.ACK, f.FrameType.PING, f.FrameType.PONG)


def _row(data: bytes) -> dict[str, Any]:
    decoder = f.FrameDecoder()
    decoder.feed(data)
    item = decoder.next_frame()
    assert item is not None
    name = f.FrameType(item[0]).name
    return {"name": name, "fields": _shown(item[1:]), "bytes": data.hex()}


def _shown(value: Any) -> Any:
    """JSON has no bytes: they are shown as {"hex": …}."""
    match value:
        case bytes():
            return {"hex": value.hex()}
        case list():
            return [_shown(part) for part in value]
        case dict():
            return {key: _shown(part) for key, part in value.items()}
        case _:
            return value


def files() -> dict[str, str]:
    """The text of each file by its name."""
    made = {
        "frames.json": {"frames": frames(), "refused": refused()},
        "handshake.json": handshake(),
        "link.json": link(),
        "credit.json": credit(),
    }
    return {name: json.dumps(content, indent=1) + "\n" for name, content in made.items()}


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
