"""HTTP/1.1 and HTTP/2 clients that take as little CPU as possible, for benchmarks only.

They trust the server, check only the status and the framing, and store nothing. An
`Answer` gets the body as it arrives; one connection carries one request at a time on HTTP/1.1 and
many on HTTP/2.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

import hpack

from bench.wire import ChunkDecoder

_CONNECT_TIMEOUT_S: Final = 30.0


class Answer(Protocol):
    """Receives a response. `on_end(False)`: a status other than 200, or a lost connection."""

    def on_body(self, data: bytes) -> None: ...

    def on_end(self, good: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and which processes to watch meanwhile.

    `watch`: process name → ids of its root processes. `host`: the Host header, where a tunnel
    routes by it. `ca`: the file with the certificate to trust; unused for http.
    """

    url: str
    ca: str = ""
    key: str = ""
    host: str = ""
    model: str = "bench"
    watch: dict[str, list[int]] = field(default_factory=dict)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to connect to."""
        parts = urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 443

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        return self.host or urlsplit(self.url).netloc

    def tls(self, alpn: str) -> ssl.SSLContext | None:
        """The TLS context, which trusts `ca` alone; None for plain http."""
        if not self.url.startswith("https:"):
            return None
        context = ssl.create_default_context(cadata=Path(self.ca).read_text())
        context.check_hostname = (
            False  # the tunnels' names have no DNS here; the certificate is pinned
        )
        context.set_alpn_protocols([alpn])
        return context


class H1Client(asyncio.Protocol):
    """One HTTP/1.1 connection."""

    def __init__(self, target: Target) -> None:
        self._fields = (
            f"Host: {target.authority}\r\nAuthorization: Bearer {target.key}\r\n".encode()
        )
        self._heads: dict[tuple[str, bytes], bytes] = {}
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._waiting = b""
        self._chunks: ChunkDecoder | None = None
        self._left = -1  # bytes of the body still to come; -1: in the head or chunked
        self._in_body = False
        self._good = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._closing = False

    @property
    def open(self) -> bool:
        """Whether another request can be sent on it."""
        return self._transport is not None and not self._closing

    def request(
        self,
        path: str,
        body: bytes,
        answer: Answer,
        *,
        content_type: bytes = b"application/json",
        length: int | None = None,
    ) -> None:
        """POST `body`; with `length`, `send_body` sends the rest of so many bytes."""
        if self._transport is None:
            answer.on_end(False)
            return
        head = self._heads.get((path, content_type))
        if head is None:
            head = (
                b"POST %b HTTP/1.1\r\n%bContent-Type: %b\r\nAccept: */*\r\n"
                b"User-Agent: bench\r\nContent-Length: "
                % (path.encode(), self._fields, content_type)
            )
            self._heads[path, content_type] = head
        self._answer = answer
        size = len(body) if length is None else length
        self._transport.write(b"%b%d\r\n\r\n%b" % (head, size, body))

    async def send_body(self, data: bytes) -> None:
        """Send more of a request's body, once the socket is writable."""
        await self._writable.wait()
        if self._transport is None:
            raise ConnectionError("the connection was lost in an upload")
        self._transport.write(data)

    def close(self) -> None:
        """Close at once; an open answer's `on_end` is not called."""
        self._answer = None
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio's side
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._writable.set()
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.on_end(False)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            data = self._waiting + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._waiting = data
                return
            self._waiting = b""
            self._on_head(data[:end])
            data = data[end + 4 :]
            if not self._in_body:  # 100 Continue
                if data:
                    self.data_received(data)
                return
        if self._chunks is not None:
            data = self._chunks.feed(data)
            ended = self._chunks.ended
        else:
            self._left -= len(data)
            ended = self._left <= 0
        if data and self._answer is not None:
            self._answer.on_body(data)
        if ended:
            self._in_body = False
            answer, self._answer = self._answer, None
            if answer is not None:
                answer.on_end(self._good)

    def _on_head(self, head: bytes) -> None:
        status = head[9:12]
        if status == b"100":
            return
        fields = head.lower() + b"\r\n"
        self._good = status == b"200"
        self._in_body = True
        self._closing = b"\r\nconnection: close\r\n" in fields
        if b"\r\ntransfer-encoding:" in fields:
            self._chunks = ChunkDecoder()
        else:
            self._chunks = None
            at = fields.find(b"\r\ncontent-length:")
            # neither: the body ends with the connection
            self._left = (
                int(fields[at + 17 : fields.index(b"\r\n", at + 2)]) if at >= 0 else 1 << 62
            )


_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK, _PADDED = 1, 4, 1, 8
_MAX_WINDOW: Final = (1 << 31) - 1
_GRANT_AT: Final = 1 << 29  # bytes received after which the windows are filled up again
_MAX_FRAME: Final = 16_384


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class H2Client(asyncio.Protocol):
    """One HTTP/2 connection whose windows never block the server.

    Request bodies are small: they go out whole, within the server's first window (64 KiB).
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._encoder = hpack.Encoder()
        self._blocks: dict[str, bytes] = {}
        self._transport: asyncio.Transport | None = None
        self._answers: dict[int, Answer] = {}
        self._next_id = 1
        self._waiting = b""
        self._received = 0
        self._closing = False

    @property
    def open(self) -> bool:
        """Whether another request can be sent on it."""
        return self._transport is not None and not self._closing and self._next_id < _MAX_WINDOW

    def request(
        self,
        path: str,
        body: bytes,
        answer: Answer,
        *,
        content_type: bytes = b"application/json",
        length: int | None = None,
    ) -> None:
        """POST `body`. `length` is not supported: uploads are measured with HTTP/1.1."""
        if length is not None:
            raise ValueError("bulk uploads are measured over HTTP/1.1")
        if self._transport is None:
            answer.on_end(False)
            return
        stream = self._next_id
        self._next_id += 2
        self._answers[stream] = answer
        block = self._head_block(path, content_type, len(body))
        self._transport.write(
            _frame(_HEADERS, _END_HEADERS, stream, block) + _frame(_DATA, _END_STREAM, stream, body)
        )

    def close(self) -> None:
        """Close at once; the `on_end` of open answers is not called."""
        self._answers.clear()
        if self._transport is not None:
            self._transport.abort()

    def _head_block(self, path: str, content_type: bytes, length: int) -> bytes:
        """Return the encoded head; cached once the encoder's table has every field."""
        name = f"{path} {length}"
        block = self._blocks.get(name)
        if block is None:
            fields = [
                (":method", "POST"),
                (":scheme", "https"),
                (":authority", self._target.authority),
                (":path", path),
                ("authorization", f"Bearer {self._target.key}"),
                ("content-type", content_type.decode()),
                ("content-length", str(length)),
                ("accept", "*/*"),
                ("user-agent", "bench"),
            ]
            block = self._encoder.encode(fields, huffman=False)
            if all(byte & 0x80 for byte in block):  # indexed fields alone: the table stays as it is
                self._blocks[name] = block
        return block

    # -- asyncio's side
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        settings = struct.pack(">HIHI", 2, 0, 4, _MAX_WINDOW)  # no push, the widest windows
        grant = struct.pack(">I", _MAX_WINDOW - 65_535)
        self._transport.write(
            _PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW, 0, 0, grant)
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            answer.on_end(False)

    def data_received(self, data: bytes) -> None:
        if self._waiting:
            data = self._waiting + data
        at = 0
        size = len(data)
        while size - at >= 9:
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            end = at + 9 + length
            if end > size:
                break
            stream = int.from_bytes(data[at + 5 : at + 9], "big")
            self._on_frame(data[at + 3], data[at + 4], stream, data[at + 9 : end])
            at = end
        self._waiting = data[at:]

    def _on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._on_data(flags, stream, payload)
        elif kind == _HEADERS:
            # 0x88 is `:status: 200` in the static table: the first field, after table size updates
            good = payload.lstrip(bytes(range(0x20, 0x40)))[:1] == b"\x88"
            if not good or flags & _END_STREAM:
                self._finish(stream, good)
        elif kind == _RST:
            self._finish(stream, False)
        elif kind == _SETTINGS and not flags & _ACK:
            self._write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._write(_frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY:
            self._closing = True

    def _on_data(self, flags: int, stream: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received >= _GRANT_AT:
            grant = struct.pack(">I", self._received)
            self._received = 0
            self._write(
                _frame(_WINDOW, 0, 0, grant)
                + b"".join(_frame(_WINDOW, 0, one, grant) for one in self._answers)
            )
        answer = self._answers.get(stream)
        if answer is None:
            return
        if flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if payload:
            answer.on_body(payload)
        if flags & _END_STREAM:
            self._finish(stream, True)

    def _finish(self, stream: int, good: bool) -> None:
        answer = self._answers.pop(stream, None)
        if answer is not None:
            answer.on_end(good)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


Client = H1Client | H2Client


async def connect(target: Target, http: str, tls: ssl.SSLContext | None) -> Client:
    """A new connection to `target` over `http` ("h1" or "h2")."""
    loop = asyncio.get_running_loop()
    host, port = target.address
    make: Any = H2Client if http == "h2" else H1Client
    name = "localhost" if tls is not None else None
    async with asyncio.timeout(_CONNECT_TIMEOUT_S):
        _, client = await loop.create_connection(
            lambda: make(target), host, port, ssl=tls, server_hostname=name
        )
    return cast(Client, client)


def alpn_of(http: str) -> str:
    """The ALPN name of "h1" or "h2"."""
    return "h2" if http == "h2" else "http/1.1"
