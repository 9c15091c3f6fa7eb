"""Bytes of a file on the hub: one GET from an offset, redirects followed, back-pressure kept.

The token goes to the hub's own origin alone; a redirect to storage elsewhere travels without it,
and never from https to http. It does not retry (`download` does) and writes no files.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

from wai_protocol.errors import AuthError, Fault, RequestError, TransportError, WaiError
from wai_protocol.surface import Headers
from wai_transport.http_client import HttpClient
from wai_transport.http_request import ClientRequest, Timeouts
from wai_transport.origin import Origin

MAX_REDIRECTS: Final = 5
BUFFER_BYTES: Final = 1 << 20  # read ahead of the disk: bounds what a slow disk costs in memory
# A server that sends nothing for this long is gone: the retry dials anew.
TIMEOUTS: Final = Timeouts(connect_s=15.0, first_byte_s=60.0, between_s=30.0)
USER_AGENT: Final = b"wai-node"
# 18 digits: an exabyte; Python refuses to read numbers of thousands of digits
_CONTENT_RANGE: Final = re.compile(rb"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_NUMBER: Final = re.compile(rb"\d{1,18}")
_URL_CHARS: Final = bytes(range(0x21, 0x7F)).decode()
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class RetryLater(TransportError):
    """The hub or its storage failed in a way that may pass: another try makes sense."""


class Incoming:
    """The body of one answer, pulled piece by piece. `offset` is where in the file it begins;
    `total` the whole file's size where the server told, else None."""

    def __init__(self) -> None:
        self.offset = 0
        self.total: int | None = None
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.request: ClientRequest | None = None
        self._pieces: deque[bytes] = deque()
        self._buffered = 0
        self._ended = False
        self._error: WaiError | None = None
        self._changed = asyncio.Event()

    # -- ResponseSink

    def on_headers(self, status: int, headers: Headers) -> None:
        """The answer's head."""
        self.status = status
        self.headers = dict(headers)
        self._changed.set()

    def on_data(self, data: bytes) -> None:
        """Keep a piece; stop reading the socket when a megabyte waits."""
        self._pieces.append(data)
        self._buffered += len(data)
        if self._buffered >= BUFFER_BYTES and self.request is not None:
            self.request.pause_reading()
        self._changed.set()

    def on_end(self) -> None:
        """The body is complete, as far as HTTP can tell."""
        self._ended = True
        self._changed.set()

    def on_error(self, error: WaiError) -> None:
        """It broke off: told to the reader once it has read what came before."""
        self._error = error
        self._changed.set()

    # -- for the reader

    async def head(self) -> None:
        """Wait for the answer's head. Raises `RetryLater`."""
        while not self.status:
            await self._wait()

    async def read(self) -> bytes:
        """What has come since the last call, b"" at the end. Raises `RetryLater` when cut."""
        while not self._pieces:
            if self._ended:
                return b""
            await self._wait()
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._buffered = 0
        if self.request is not None and self.request.reading_paused and not self.request.over:
            self.request.resume_reading()
        return data

    async def _wait(self) -> None:
        if self._error is not None:
            raise RetryLater(str(self._error), self._error.fault) from self._error
        self._changed.clear()
        await self._changed.wait()


class Transfer:
    """Reads files of one hub: `endpoint` is the hub's URL, `token` what we show to it alone."""

    def __init__(self, endpoint: str, token: str | None, timeouts: Timeouts = TIMEOUTS) -> None:
        self._home, _ = Origin.parse(endpoint)
        self._token = token
        self._timeouts = timeouts

    async def read_range(self, url: str, offset: int, count: int) -> bytes:
        """`count` bytes of the file from `offset` on, fewer at its end. Raises `WaiError`."""
        found = bytearray()
        async with self.open(url, offset, offset + count - 1) as body:
            if body.offset != offset:
                raise TransportError(
                    "the hub's storage does not serve parts of files", Fault.UPSTREAM_BROKE
                )
            while len(found) < count:
                data = await body.read()
                if not data:
                    break
                found += data
        if not found:
            raise RetryLater("the hub's storage sent an empty answer", Fault.UPSTREAM_BROKE)
        return bytes(found[:count])

    @asynccontextmanager
    async def open(
        self, url: str, offset: int = 0, last: int | None = None
    ) -> AsyncIterator[Incoming]:
        """A GET of `url` from `offset` on (to `last`, inclusive). The server may ignore the range:
        look at `Incoming.offset`. Raises `RetryLater`, or another `WaiError` where a second try
        would be answered the same."""
        home = True
        name = urlsplit(url).path.rsplit("/", 1)[-1][:100]  # the storage's own is a hash
        for _ in range(MAX_REDIRECTS + 1):
            origin, target = _split(url)
            home = home and origin == self._home
            client = HttpClient(origin, timeouts=self._timeouts)
            try:
                body = Incoming()
                headers = self._headers(offset, last, with_token=home)
                body.request = client.request("GET", target, headers, body)
                body.request.end()
                await body.head()
                if body.status in _REDIRECTS:
                    url = _next_url(url, body.headers.get(b"location", b""))
                    continue
                _check_answer(body, name)
                yield body
                return
            finally:
                if body.request is not None:
                    body.request.close()
                await client.aclose()
        raise TransportError("the hub redirects in a circle", Fault.UPSTREAM_BROKE)

    def _headers(self, offset: int, last: int | None, *, with_token: bool) -> Headers:
        end = b"" if last is None else str(last).encode()
        headers = [
            (b"user-agent", USER_AGENT),
            (b"accept-encoding", b"identity"),  # sizes and offsets must be the file's own
        ]
        if offset or last is not None:
            headers.append((b"range", b"bytes=%d-%b" % (offset, end)))
        if with_token and self._token:
            headers.append((b"authorization", b"Bearer " + self._token.encode()))
        return headers


def _split(url: str) -> tuple[Origin, str]:
    parts = urlsplit(url)
    origin, _ = Origin.parse(f"{parts.scheme}://{parts.netloc}")
    target = parts.path or "/"
    return origin, f"{target}?{parts.query}" if parts.query else target


def _next_url(url: str, location: bytes) -> str:
    try:
        following = urljoin(url, quote(location, safe=_URL_CHARS))
        scheme = urlsplit(following).scheme
    except ValueError:
        location = b""
    if not location:
        raise TransportError("the hub redirects to nowhere", Fault.UPSTREAM_BROKE)
    if urlsplit(url).scheme == "https" and scheme != "https":
        raise TransportError("the hub redirects from https to http", Fault.UPSTREAM_BROKE)
    return following


def _check_answer(body: Incoming, name: str) -> None:
    """Set `offset` and `total` from a good answer; raise for the others."""
    match body.status:
        case 200:
            length = body.headers.get(b"content-length", b"")
            body.total = int(length) if _NUMBER.fullmatch(length) else None
        case 206:
            found = _CONTENT_RANGE.fullmatch(body.headers.get(b"content-range", b""))
            if found is None:
                raise TransportError("the storage answers 206 without a range")
            body.offset = int(found[1])
            body.total = int(found[3]) if found[3] != b"*" else None
        case 401 | 403:
            code = body.headers.get(b"x-error-code", b"")
            if code == b"GatedRepo":
                raise AuthError(
                    f"{name} is gated: accept its licence on the hub, and give this node an "
                    "HF_TOKEN of that account",
                    Fault.FORBIDDEN,
                )
            if body.headers.get(b"x-error-code") or b"www-authenticate" in body.headers:
                raise AuthError(f"the hub does not let this node read {name}", Fault.FORBIDDEN)
            # storage refuses a link that has run out: a new try gets a new link
            raise RetryLater(f"the hub's storage answered {body.status} for {name}")
        case 404:
            raise RequestError(f"the hub has no file {name} any more", Fault.NOT_FOUND)
        case 416:
            raise RequestError(f"{name} is shorter than what is here of it already")
        case status if status == 429 or status >= 500:
            after = body.headers.get(b"retry-after", b"")
            wait_s = float(after) if _NUMBER.fullmatch(after) else None
            raise RetryLater(f"the hub answered {status} for {name}", retry_after_s=wait_s)
        case status:
            raise TransportError(f"the hub answered {status} for {name}", Fault.UPSTREAM_BROKE)
