"""A node's and a relay's session, connected in memory, with a clock that the test controls.

Bytes are in transit until a test delivers them; a cut loses those in transit. Everything that
arrives is compared at once with what was sent.
"""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Final

from wai_protocol.errors import RemoteProtocolError
from wai_protocol.events import (
    DataReceived,
    Event,
    HeadersReceived,
    PeerDead,
    ReplyReceived,
    StreamEnded,
    StreamOpened,
    StreamReset,
    Writable,
)
from wai_protocol.limits import Limits
from wai_protocol.session import Role, Session

_BLOB: Final = random.Random(7).randbytes(1 << 16)


def content(stream: int, role: Role, at: int, size: int) -> bytes:
    """Return the bytes from `at` of what `role` sends on `stream`; each stream's are different."""
    start = (stream * 7919 + at + (31337 if role is Role.NODE else 0)) % len(_BLOB)
    repeated = _BLOB * (2 + size // len(_BLOB))
    return repeated[start : start + size]


class End:
    """One end: its session, what it has sent, and what it has received."""

    def __init__(self, role: Role, limits: Limits, peer: Limits) -> None:
        self.role = role
        self.session = Session(role, local=limits, peer=peer)
        self.wire = bytearray()
        """What it has sent and the other end has not got yet."""
        self.sent: defaultdict[int, int] = defaultdict(int)
        self.got: defaultdict[int, int] = defaultdict(int)
        self.used: defaultdict[int, int] = defaultdict(int)
        self.stopped: set[int] = set()
        self.ended: set[int] = set()
        """Streams that this end has ended itself."""
        self.heads: set[int] = set()
        """Streams whose head it sent (node) or got (relay)."""
        self.over: dict[int, str] = {}
        """Streams whose other direction is over: "end" or "reset"."""
        self.told: set[int] = set()
        """Streams that the other end has reset."""
        self.opened: list[int] = []
        self.replies: list[int] = []
        self.events: list[Event] = []
        self.died = False

    @property
    def other_role(self) -> Role:
        return Role.RELAY if self.role is Role.NODE else Role.NODE

    def write(self, stream: int, size: int) -> bool:
        data = content(stream, self.role, self.sent[stream], size)
        self.sent[stream] += size
        more = self.session.send_data(stream, data)
        if not more:
            self.stopped.add(stream)
        return more

    def use(self, stream: int, size: int) -> None:
        size = min(size, self.got[stream] - self.used[stream])
        self.used[stream] += size
        self.session.consume(stream, size)

    def pump(self) -> int:
        """Write once, as the shell does once a turn; return how many bytes."""
        data = self.session.bytes_to_send()
        self.wire += data
        self.take(self.session.take_events())
        return len(data)

    def take(self, events: list[Event]) -> None:
        for event in events:
            self.events.append(event)
            match event:
                case DataReceived(stream, data):
                    assert stream not in self.over, "bytes after the end"
                    assert data == content(stream, self.other_role, self.got[stream], len(data))
                    self.got[stream] += len(data)
                case StreamOpened(stream, _, _, _, _, end):
                    assert stream not in self.opened, "opened twice"
                    self.opened.append(stream)
                    if end:
                        self.over[stream] = "end"
                case HeadersReceived(stream):
                    assert stream not in self.heads, "two heads"
                    assert self.got[stream] == 0, "a head after its body"
                    self.heads.add(stream)
                case StreamEnded(stream):
                    assert stream not in self.over, "ended twice"
                    self.over[stream] = "end"
                case StreamReset(stream):
                    assert stream not in self.told, "told of a reset twice"
                    self.told.add(stream)
                    # A node hears also of one that crossed its own: what it took is asked for.
                    crossed = self.over.get(stream) == "reset"
                    assert self.role is Role.NODE or not crossed, "told after its own reset"
                    self.over[stream] = "reset"
                case Writable(stream):
                    assert stream in self.stopped, "Writable that was not owed"
                    self.stopped.discard(stream)
                case ReplyReceived(call):
                    self.replies.append(call)
                case PeerDead():
                    self.died = True
                case _:
                    pass


class SessionPair:
    """Both ends and the two directions of wire between them."""

    def __init__(self, node: Limits | None = None, relay: Limits | None = None) -> None:
        node, relay = node or Limits(), relay or Limits()
        self.now = 100.0
        self.node = End(Role.NODE, node, relay)
        self.relay = End(Role.RELAY, relay, node)
        self.ends = (self.node, self.relay)
        self.connections = 0

    @property
    def connected(self) -> bool:
        return self.relay.session.attached

    def connect(self) -> None:
        """Attach both ends to a new connection, which resumes from what each has received."""
        self.connections += 1
        node_received, relay_received = self.node.session.received, self.relay.session.received
        self.relay.session.attach(node_received, self.now)
        self.node.session.attach(relay_received, self.now)

    def cut(self) -> None:
        """Lose the connection, and the bytes in transit."""
        for end in self.ends:
            end.session.detach()
            end.wire.clear()

    def deliver(self, sender: End, size: int | None = None) -> int:
        """Deliver up to `size` bytes of what `sender` wrote to the other end."""
        receiver = self.relay if sender is self.node else self.node
        data = bytes(sender.wire[:size])
        del sender.wire[: len(data)]
        if data:
            receiver.take(receiver.session.receive_data(data, self.now))
        return len(data)

    def settle(self, *, use: bool = True) -> None:
        """Write, deliver and consume everything until nothing is left to send."""
        for _ in range(100_000):
            moved = 0
            for end in self.ends:
                moved += end.pump()
            for end in self.ends:
                moved += self.deliver(end)
                if use:
                    for stream in list(end.got):
                        end.use(stream, end.got[stream])
            if not moved:
                return
        raise AssertionError("the two never fall silent")

    def tick(self, seconds: float) -> None:
        """Let time pass, as a shell with a punctual timer would see it."""
        self.now += seconds
        for end in self.ends:
            end.died = False
            end.take(end.session.handle_timeout(self.now))
        if any(end.died for end in self.ends):
            self.cut()


def refused(end: End, data: bytes, now: float = 100.0) -> RemoteProtocolError:
    """Return the error with which `end` refuses `data`; fail if it accepts it."""
    try:
        end.session.receive_data(data, now)
    except RemoteProtocolError as error:
        return error
    raise AssertionError("it was taken")
