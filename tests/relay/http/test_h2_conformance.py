"""What RFC 9113 and RFC 7541 ask of a server, case by case, with frames made by hand.

The cases are those of the public conformance suite for HTTP/2 servers, named by section: its
generic ones, which must be answered, and its strict ones, which must end in the right error.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass
from typing import Final

import pytest
from hpack import Decoder, Encoder

from wai_relay.http.edge import Edge, Handler
from wai_relay.http.exchange import Exchange
from wai_relay.http.h2 import MAX_CONCURRENT_STREAMS, H2Connection

from .fakes import FakeTransport, decoded, echo, turns

pytestmark = pytest.mark.anyio

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY = range(8)
WINDOW_UPDATE, CONTINUATION = 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 1, 1, 4, 8, 32
NO_ERROR, PROTOCOL, INTERNAL, FLOW_CONTROL, _, STREAM_CLOSED, FRAME_SIZE, REFUSED = range(8)
COMPRESSION: Final = 9

Fields = list[tuple[str, str]]
Errors = tuple[int, ...]


@dataclass(frozen=True)
class Frame:
    """One that the server sent."""

    kind: int
    flags: int
    stream: int
    payload: bytes
    status: str

    @property
    def code(self) -> int:
        return int.from_bytes(self.payload[4:8] if self.kind == GOAWAY else self.payload[:4], "big")


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags])
    return head + struct.pack(">I", stream) + payload


def block(fields: Fields) -> bytes:
    encoder = Encoder()
    encoder.header_table_size = 0  # so that each block can be read without those before it
    return encoder.encode(fields, huffman=False)


def fields(changes: dict[str, str | None] | None = None, *more: tuple[str, str]) -> Fields:
    """A request's fields: with `changes` (None: without this one), and `more` behind them."""
    usual = {":method": "POST", ":scheme": "https", ":path": "/p", ":authority": "a"}
    changed: dict[str, str | None] = {**usual, **(changes or {})}
    return [*((n, v) for n, v in changed.items() if v is not None), *more]


GOOD: Final = block(fields())


def headers(payload: bytes = GOOD, stream: int = 1, flags: int = END_HEADERS | END_STREAM) -> bytes:
    return frame(HEADERS, flags, stream, payload)


OPEN: Final = headers(flags=END_HEADERS)


def data(payload: bytes = b"", stream: int = 1, flags: int = END_STREAM) -> bytes:
    return frame(DATA, flags, stream, payload)


def setting(kind: int, value: int) -> bytes:
    return frame(SETTINGS, payload=struct.pack(">HI", kind, value))


def number(kind: int, value: int, stream: int = 0) -> bytes:
    """WINDOW_UPDATE or RST_STREAM."""
    return frame(kind, 0, stream, struct.pack(">I", value))


def priority(stream: int, depends_on: int = 0) -> bytes:
    return frame(PRIORITY, 0, stream, struct.pack(">IB", depends_on, 9))


GO_AWAY: Final = struct.pack(">II", 0, NO_ERROR)
THEIR_PING: Final = frame(PING, payload=b"suite678")


async def never_reads(exchange: Exchange) -> None:
    """A handler that leaves the request's body where it is."""
    del exchange
    await asyncio.Event().wait()


class Suite:
    """A caller that sends what it likes, and looks at each frame that comes back."""

    def __init__(
        self, *, preface: bytes = PREFACE + frame(SETTINGS), handler: Handler = echo
    ) -> None:
        self.edge, self.transport = Edge(handler), FakeTransport()
        self.connection = H2Connection(self.edge)
        self.connection.connection_made(self.transport.as_transport())
        self.connection.data_received(preface)
        self.decoder = Decoder()
        self.heard()

    async def say(self, raw: bytes) -> list[Frame]:
        self.connection.data_received(raw)
        await decoded(self.connection)
        return self.heard()

    def heard(self) -> list[Frame]:
        frames, at, written = [], 0, bytes(self.transport.written)
        self.transport.written.clear()
        while at < len(written):
            size, stream = int.from_bytes(written[at : at + 3], "big"), written[at + 5 : at + 9]
            payload = written[at + 9 : at + 9 + size]
            place, kind = int.from_bytes(stream, "big"), written[at + 3]
            said = (
                next(iter(self.decoder.decode(payload)))[1] if kind == HEADERS else ""
            )  # :status is first
            frames.append(Frame(kind, written[at + 4], place, payload, str(said)))
            at += 9 + size
        return frames

    async def leave(self) -> None:
        self.connection.connection_lost(None)
        await turns()
        assert self.edge.serving == 0


def of(frames: list[Frame], kind: int, stream: int = 1) -> list[Frame]:
    return [f for f in frames if f.kind == kind and f.stream == stream]


def status(frames: list[Frame], stream: int = 1) -> str:
    return of(frames, HEADERS, stream)[0].status


# -- what must be answered: the bytes after the preface, and the streams that get a whole answer
ANSWERED: Final[dict[str, bytes]] = {
    "generic/2 PRIORITY for an idle stream": priority(3) + headers(),
    "generic/2 PRIORITY for a closed stream": headers() + priority(1),
    "generic/2 WINDOW_UPDATE for a half-closed stream": headers() + number(WINDOW_UPDATE, 9, 1),
    "generic/3.1 DATA": OPEN + data(b"hello"),
    "generic/3.1 several DATA": OPEN + data(b"hel", flags=0) + data(b"lo"),
    "generic/3.1 DATA with padding": OPEN
    + data(b"\x05hello" + bytes(5), flags=END_STREAM | PADDED),
    "generic/3.2 HEADERS": headers(),
    "generic/3.2 HEADERS with padding": headers(
        b"\x04" + GOOD + bytes(4), flags=END_HEADERS | END_STREAM | PADDED
    ),
    "generic/3.2 HEADERS with priority": headers(
        struct.pack(">IB", 0x80000000, 255) + GOOD,
        flags=END_HEADERS | END_STREAM | WITH_PRIORITY,
    ),
    "generic/3.3 PRIORITY on the stream": OPEN + priority(1) + data(),
    "generic/3.3 PRIORITY with a dependency": priority(3, 1) + headers(),
    "generic/3.5 SETTINGS": setting(4, 65_535) + headers(),
    "generic/3.8 RST_STREAM of another": headers(stream=1)
    + headers(stream=3)
    + number(RST_STREAM, 8, 3),
    "generic/3.9 WINDOW_UPDATE": number(WINDOW_UPDATE, 1) + headers(),
    "generic/3.10 CONTINUATION": headers(GOOD[:1], flags=END_STREAM)
    + frame(CONTINUATION, END_HEADERS, 1, GOOD[1:]),
    "generic/3.10 several CONTINUATION": headers(GOOD[:1], flags=END_STREAM)
    + frame(CONTINUATION, 0, 1, GOOD[1:5])
    + frame(CONTINUATION, END_HEADERS, 1, GOOD[5:]),
    "generic/4 HEAD": headers(block(fields({":method": "HEAD"}))),
    "generic/4 POST with trailers": OPEN + data(b"hello", flags=0) + headers(block([("x", "1")])),
    "generic/5 an indexed field": headers(b"\x83\x87\x84\x01\x01a"),
    "generic/5 a literal with indexing": headers(GOOD + b"\x40\x01x\x011"),
    "generic/5 a literal without indexing": headers(GOOD + b"\x00\x01x\x011"),
    "generic/5 a literal never indexed": headers(GOOD + b"\x10\x01x\x011"),
    "generic/5 Huffman": headers(Encoder().encode(fields())),
    "generic/5 a table size update first": headers(b"\x20" + GOOD),
    "generic/5 two table size updates": headers(b"\x20\x3f\x45" + GOOD),
    "4.1 an unknown frame": frame(0x16, 0, 0, bytes(8)) + headers(),
    "4.1 flags that are not defined": frame(PING, 0x16, 0, bytes(8)) + headers(),
    "4.1 the reserved bit": frame(PING, 0, 0x80000000, bytes(8)) + headers(),
    "4.2 DATA of the largest size": OPEN + data(bytes(16_384)),
    "5.5 an unknown frame on a stream": OPEN + frame(0x17, 0, 1, b"x") + data(),
    "6.5.2 an unknown setting": setting(0xFF, 1) + headers(),
    "6.8 trailers after DATA without bytes": OPEN + data(flags=0) + headers(block([("x", "1")])),
    "7 RST_STREAM with an unknown code": headers(stream=3)
    + number(RST_STREAM, 0xFF, 3)
    + headers(stream=5)
    + headers(stream=7),
    "8.1.2.2 te: trailers": headers(block(fields(None, ("te", "trailers")))),
    "8.1.2.3 host beside :authority": headers(block(fields(None, ("host", "a")))),
    "8.1.2.5 cookie crumbs": headers(block(fields(None, ("cookie", "a=1"), ("cookie", "b=2")))),
    "8.1.2.6 a content-length that is true": headers(
        block(fields(None, ("content-length", "5"))), flags=END_HEADERS
    )
    + data(b"hel", flags=0)
    + data(b"lo"),
}


@pytest.mark.parametrize("case", ANSWERED)
@pytest.mark.parametrize("step", [1, 1 << 20])
async def test_what_the_protocol_allows_is_answered(case: str, step: int) -> None:
    suite = Suite()
    raw = ANSWERED[case]
    for start in range(0, len(raw), step):
        suite.connection.data_received(raw[start : start + step])
    await decoded(suite.connection)
    stream = 7 if "unknown code" in case else 1
    frames = suite.heard()
    assert status(frames, stream) == "200"
    assert any(f.flags & END_STREAM for f in frames if f.stream == stream and f.kind <= HEADERS)
    assert not of(frames, GOAWAY, 0)
    assert not of(frames, RST_STREAM, stream)
    assert of(await suite.say(THEIR_PING), PING, 0)
    await suite.leave()


# -- what must end the connection
BLOCK_OPEN: Final = headers(flags=END_STREAM)  # its header block goes on in a CONTINUATION
CONNECTION: Final[dict[str, tuple[bytes, Errors]]] = {
    "4.2 DATA that is too large": (OPEN + data(bytes(16_385)), (FRAME_SIZE,)),
    "4.2 HEADERS that are too large": (headers(GOOD + bytes(16_384)), (FRAME_SIZE,)),
    "4.3 a header block that can't be read": (headers(b"\x40"), (COMPRESSION,)),
    "4.3 PRIORITY within a header block": (BLOCK_OPEN + priority(1), (PROTOCOL,)),
    "4.3 HEADERS within a header block": (BLOCK_OPEN + headers(stream=3), (PROTOCOL,)),
    "5.1 DATA on an idle stream": (data(), (PROTOCOL,)),
    "5.1 RST_STREAM on an idle stream": (number(RST_STREAM, 8, 1), (PROTOCOL,)),
    "5.1 WINDOW_UPDATE on an idle stream": (number(WINDOW_UPDATE, 9, 1), (PROTOCOL,)),
    "5.1 CONTINUATION on an idle stream": (frame(CONTINUATION, 4, 1, GOOD), (PROTOCOL,)),
    "5.1.1 an even stream": (headers(stream=2), (PROTOCOL,)),
    "5.1.1 a stream below the last": (headers(stream=5) + headers(stream=3), (PROTOCOL,)),
    "5.5 an unknown frame within a header block": (BLOCK_OPEN + frame(0x16), (PROTOCOL,)),
    "6.1 DATA on stream 0": (OPEN + data(b"x", stream=0), (PROTOCOL,)),
    "6.1 DATA with too much padding": (OPEN + data(b"\x06hello", flags=9), (PROTOCOL,)),
    "6.2 HEADERS on stream 0": (headers(stream=0), (PROTOCOL,)),
    "6.2 HEADERS with too much padding": (headers(b"\xff" + GOOD, flags=13), (PROTOCOL,)),
    "6.3 PRIORITY on stream 0": (priority(0), (PROTOCOL,)),
    "6.4 RST_STREAM on stream 0": (number(RST_STREAM, 8), (PROTOCOL,)),
    "6.4 RST_STREAM of another size": (OPEN + frame(RST_STREAM, 0, 1, b"abc"), (FRAME_SIZE,)),
    "6.5 SETTINGS: an ACK with content": (frame(SETTINGS, ACK, 0, bytes(6)), (FRAME_SIZE,)),
    "6.5 SETTINGS: an ACK with one byte": (frame(SETTINGS, ACK, 0, b"x"), (FRAME_SIZE,)),
    "6.5 SETTINGS: an ACK on a stream": (frame(SETTINGS, ACK, 1), (PROTOCOL,)),
    "6.5 SETTINGS on a stream": (frame(SETTINGS, 0, 1), (PROTOCOL,)),
    "6.5 SETTINGS of another size": (frame(SETTINGS, 0, 0, bytes(7)), (FRAME_SIZE,)),
    "6.5.2 ENABLE_PUSH of 2": (setting(2, 2), (PROTOCOL,)),
    "6.5.2 a window that is too large": (setting(4, 1 << 31), (FLOW_CONTROL,)),
    "6.5.2 a frame size that is too small": (setting(5, 16_383), (PROTOCOL,)),
    "6.5.2 a frame size that is too large": (setting(5, 1 << 24), (PROTOCOL,)),
    "6.7 PING on a stream": (frame(PING, 0, 1, bytes(8)), (PROTOCOL,)),
    "6.7 PING of another size": (frame(PING, 0, 0, bytes(6)), (FRAME_SIZE,)),
    "6.8 GOAWAY on a stream": (frame(GOAWAY, 0, 1, GO_AWAY), (PROTOCOL,)),
    "6.9 WINDOW_UPDATE by 0": (number(WINDOW_UPDATE, 0), (PROTOCOL,)),
    "6.9 WINDOW_UPDATE of another size": (frame(WINDOW_UPDATE, 0, 0, b"abc"), (FRAME_SIZE,)),
    "6.9.1 a window that overflows": (number(WINDOW_UPDATE, (1 << 31) - 1), (FLOW_CONTROL,)),
    "6.9.1 more DATA than the window": (
        OPEN + data(bytes(16_384), flags=0) * 17,
        (FLOW_CONTROL,),
    ),
    "6.10 CONTINUATION on stream 0": (BLOCK_OPEN + frame(CONTINUATION, 4, 0), (PROTOCOL,)),
    "6.10 CONTINUATION of another stream": (BLOCK_OPEN + frame(CONTINUATION, 4, 3), (PROTOCOL,)),
    "6.10 CONTINUATION after HEADERS that end": (OPEN + frame(CONTINUATION, 4, 1), (PROTOCOL,)),
    "6.10 CONTINUATION after DATA": (
        OPEN + data(b"x", flags=0) + frame(CONTINUATION, 4, 1),
        (PROTOCOL,),
    ),
    "8.2 PUSH_PROMISE from a client": (
        OPEN + frame(PUSH_PROMISE, 4, 1, struct.pack(">I", 2) + GOOD),
        (PROTOCOL,),
    ),
    "hpack/2.3.3 an index that is not there": (headers(GOOD + b"\xff\x00"), (COMPRESSION,)),
    "hpack/4.2 a size update behind fields": (headers(GOOD + b"\x20"), (COMPRESSION,)),
    "hpack/5.2 Huffman padding that is too long": (
        headers(GOOD + b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff"),
        (COMPRESSION,),
    ),
    "hpack/5.2 Huffman padding of zeros": (
        headers(GOOD + b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90"),
        (COMPRESSION,),
    ),
    "hpack/5.2 the end-of-string symbol": (
        headers(GOOD + b"\x00\x85\xf2\xb2\x4a\x87\xff\xff\xff\xfa\x8d\x7f\xff"),
        (COMPRESSION,),
    ),
    "hpack/6.1 index 0": (headers(GOOD + b"\x80"), (COMPRESSION,)),
    "hpack/6.3 a table that is too large": (headers(b"\x3f\xe1\xff\x03" + GOOD), (COMPRESSION,)),
}


@pytest.mark.parametrize("case", CONNECTION)
@pytest.mark.parametrize("step", [1, 1 << 20])
async def test_what_breaks_the_connection_ends_it(case: str, step: int) -> None:
    suite = Suite(handler=never_reads)  # what is read gives credit, in between if the core is slow
    raw, codes = CONNECTION[case]
    for start in range(0, len(raw), step):
        suite.connection.data_received(raw[start : start + step])
    await decoded(suite.connection)
    (goodbye,) = of(suite.heard(), GOAWAY, 0)
    assert goodbye.code in codes
    assert suite.transport.closed
    await suite.leave()


async def test_an_invalid_preface_ends_the_connection() -> None:  # 3.5
    suite = Suite(preface=b"INVALID CONNECTION PREFACE\r\n\r\n")
    await decoded(suite.connection)
    assert suite.transport.closed
    await suite.leave()


# -- what must end its stream: RST_STREAM, or GOAWAY where the connection must end with it
MALFORMED: Final[dict[str, Fields]] = {
    "8.1.2 a name in upper case": fields(None, ("X-TEST", "ok")),
    "8.1.2.1 an unknown pseudo-header field": fields({":test": "ok"}),
    "8.1.2.1 a response's pseudo-header field": fields({":status": "200"}),
    "8.1.2.1 a pseudo-header field behind others": [
        *fields({":authority": None}, ("x", "1")),
        (":authority", "a"),
    ],
    "8.1.2.2 connection": fields(None, ("connection", "keep-alive")),
    "8.1.2.2 proxy-connection": fields(None, ("proxy-connection", "keep-alive")),
    "8.1.2.2 keep-alive": fields(None, ("keep-alive", "timeout=5")),
    "8.1.2.2 transfer-encoding": fields(None, ("transfer-encoding", "chunked")),
    "8.1.2.2 upgrade": fields(None, ("upgrade", "wai/1")),
    "8.1.2.2 te that is not trailers": fields(None, ("te", "trailers, deflate")),
    "8.1.2.3 an empty :path": fields({":path": ""}),
    "8.1.2.3 a :path that begins with no slash": fields({":path": "p"}),
    "8.1.2.3 without :method": fields({":method": None}),
    "8.1.2.3 an empty :method": fields({":method": ""}),
    "8.1.2.3 without :scheme": fields({":scheme": None}),
    "8.1.2.3 without :path": fields({":path": None}),
    "8.1.2.3 two :method": [(":method", "POST"), *fields()],
    "8.1.2.3 two :scheme": [(":scheme", "https"), *fields()],
    "8.1.2.3 two :path": [(":path", "/p"), *fields()],
    "8.1.2.3 two :authority": [(":authority", "a"), *fields()],
    "8.1.2.3 a host that is not :authority": fields(None, ("host", "b")),
    "8.1.2.6 two content-length": fields(None, *[("content-length", "0")] * 2),
    "8.2.1 a name with a space": fields(None, ("x y", "1")),
    "8.2.1 an empty name": fields(None, ("", "1")),
    "8.2.1 a value with LF": fields(None, ("x", "1\n2")),
    "8.2.1 a value with NUL": fields(None, ("x", "1\x002")),
    "8.2.1 a value that begins with a space": fields(None, ("x", " 1")),
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("ended", ["with its HEADERS", "later"])
async def test_a_malformed_request_ends_in_a_stream_error(case: str, ended: str) -> None:
    suite = Suite()
    flags = END_HEADERS | (END_STREAM if ended == "with its HEADERS" else 0)
    frames = await suite.say(headers(block(MALFORMED[case]), flags=flags))
    (reset,) = of(frames, RST_STREAM)
    assert reset.code == PROTOCOL
    assert frames[-1] == reset
    # the answer that says why may come first, but never as if it were whole
    assert status(frames) == "400"
    assert not any(f.flags & END_STREAM for f in frames if f.kind in (HEADERS, DATA))
    assert not of(frames, GOAWAY, 0)
    assert status(await suite.say(headers(stream=3)), 3) == "200"
    assert suite.edge.counters.requests == 1
    await suite.leave()


STREAM: Final[dict[str, tuple[bytes, Errors]]] = {
    "5.1 DATA on a half-closed stream": (headers() + data(b"x"), (STREAM_CLOSED,)),
    "5.1 HEADERS on a half-closed stream": (headers() * 2, (STREAM_CLOSED,)),
    "5.1 CONTINUATION on a half-closed stream": (
        headers() + frame(CONTINUATION, 4, 1, GOOD),
        (STREAM_CLOSED, PROTOCOL),
    ),
    "5.1 DATA after RST_STREAM": (
        OPEN + number(RST_STREAM, 8, 1) + data(b"x"),
        (STREAM_CLOSED, PROTOCOL),
    ),
    "5.1 HEADERS after RST_STREAM": (
        OPEN + number(RST_STREAM, 8, 1) + headers(),
        (STREAM_CLOSED, PROTOCOL),
    ),
    "5.1 CONTINUATION after RST_STREAM": (
        OPEN + number(RST_STREAM, 8, 1) + frame(CONTINUATION, 4, 1, GOOD),
        (STREAM_CLOSED, PROTOCOL),
    ),
    "5.1.2 more streams than allowed": (
        b"".join(
            headers(stream=2 * n + 1, flags=END_HEADERS) for n in range(MAX_CONCURRENT_STREAMS + 1)
        ),
        (PROTOCOL, REFUSED),
    ),
    "5.3.1 HEADERS that depend on themselves": (
        headers(struct.pack(">IB", 1, 255) + GOOD, flags=5 | WITH_PRIORITY),
        (PROTOCOL,),
    ),
    "5.3.1 PRIORITY that depends on itself": (OPEN + priority(1, 1), (PROTOCOL,)),
    "6.3 PRIORITY of another size": (OPEN + frame(PRIORITY, 0, 1, b"abcd"), (FRAME_SIZE,)),
    "6.9 WINDOW_UPDATE of a stream by 0": (OPEN + number(WINDOW_UPDATE, 0, 1), (PROTOCOL,)),
    "6.9.1 a stream's window that overflows": (
        OPEN + number(WINDOW_UPDATE, (1 << 31) - 1, 1),
        (FLOW_CONTROL,),
    ),
    "8.1 a second HEADERS that ends nothing": (OPEN + data(b"x", flags=0) + OPEN, (PROTOCOL,)),
    "8.1.2.1 a pseudo-header field in trailers": (
        OPEN + data(b"x", flags=0) + headers(block([(":method", "GET")])),
        (PROTOCOL,),
    ),
    "8.1.2 a trailer in upper case": (
        OPEN + data(b"x", flags=0) + headers(block([("X-T", "1")])),
        (PROTOCOL,),
    ),
    "8.1.2.2 connection in trailers": (
        OPEN + data(b"x", flags=0) + headers(block([("connection", "close")])),
        (PROTOCOL,),
    ),
    "8.1.2.6 a content-length that is not DATA's": (
        headers(block(fields(None, ("content-length", "1"))), flags=END_HEADERS) + data(b"test"),
        (PROTOCOL,),
    ),
    "8.1.2.6 a content-length that is not all DATA's": (
        headers(block(fields(None, ("content-length", "1"))), flags=END_HEADERS)
        + data(b"test", flags=0)
        + data(b"test"),
        (PROTOCOL,),
    ),
    "8.1.2.6 a content-length without DATA": (
        headers(block(fields(None, ("content-length", "1")))),
        (PROTOCOL,),
    ),
    "8.1.2.6 a content-length that is more than DATA": (
        headers(block(fields(None, ("content-length", "9"))), flags=END_HEADERS) + data(b"test"),
        (PROTOCOL,),
    ),
    "8.1.2.6 a content-length that is more than DATA before trailers": (
        headers(block(fields(None, ("content-length", "9"))), flags=END_HEADERS)
        + data(b"test", flags=0)
        + headers(block([("x", "1")])),
        (PROTOCOL,),
    ),
    "8.1.2.6 a content-length that is no number": (
        headers(block(fields(None, ("content-length", "x")))),
        (PROTOCOL,),
    ),
}


@pytest.mark.parametrize("case", STREAM)
@pytest.mark.parametrize("step", [1, 1 << 20])
async def test_what_breaks_a_stream_ends_it(case: str, step: int) -> None:
    suite = Suite()
    raw, codes = STREAM[case]
    for start in range(0, len(raw), step):
        suite.connection.data_received(raw[start : start + step])
    await decoded(suite.connection)
    errors = [f for f in suite.heard() if f.kind in (RST_STREAM, GOAWAY) and f.code != NO_ERROR]
    assert errors
    assert {f.code for f in errors} <= set(codes)
    await suite.leave()


# -- what is between the two
async def test_settings_and_ping_are_answered_and_an_ack_is_not() -> None:  # 6.5.3, 6.7
    suite = Suite()
    await suite.say(b"")
    (answer,) = of(await suite.say(setting(3, 9)), SETTINGS, 0)
    assert answer.flags == ACK
    (pong,) = of(await suite.say(THEIR_PING), PING, 0)
    assert (pong.flags, pong.payload) == (ACK, b"suite678")
    assert not await suite.say(frame(PING, ACK, 0, bytes(8)))
    assert not await suite.say(frame(SETTINGS, ACK))
    await suite.leave()


async def test_a_window_is_honoured_as_it_changes() -> None:  # 6.9.1, 6.9.2
    suite = Suite()
    await suite.say(setting(4, 1))
    assert [f.payload for f in of(await suite.say(headers()), DATA)] == [b"/"]
    assert [f.payload for f in of(await suite.say(setting(4, 2)), DATA)] == [b"p"]
    await suite.say(setting(4, 0))  # the stream's window is below 0 now
    assert not of(await suite.say(number(WINDOW_UPDATE, 2, 1)), DATA)
    (last,) = of(await suite.say(number(WINDOW_UPDATE, 1, 1)), DATA)
    assert (last.payload, last.flags) == (b":", END_STREAM)
    await suite.leave()


@pytest.mark.parametrize("code", [NO_ERROR, 0xFF])
async def test_goaway_ends_the_connection_quietly(code: int) -> None:  # generic/3.8, 7
    suite = Suite()
    await suite.say(frame(GOAWAY, 0, 0, struct.pack(">II", 0, code)))
    assert suite.transport.closed
    await suite.leave()


async def test_a_refusal_that_is_no_malformed_request_ends_well() -> None:
    suite = Suite()
    frames = await suite.say(headers(block(fields(None, ("expect", "magic")))))
    assert status(frames) == "417"
    assert not of(frames, RST_STREAM)
    assert any(f.flags & END_STREAM for f in of(frames, DATA))
    await suite.leave()


async def test_trailers_that_are_malformed_cancel_the_handler() -> None:
    cancelled = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    suite = Suite()
    suite.edge.handler = handler
    await suite.say(OPEN)
    (reset,) = of(await suite.say(headers(block([(":path", "/")]))), RST_STREAM)
    assert reset.code == PROTOCOL
    assert cancelled.is_set()
    await suite.leave()
