"""Read a file on the hub, or a release server, from an offset: one GET, with back-pressure.

The token is sent to the hub's own origin only, not to storage that it redirects to, and a redirect
from https to http is refused. `download` retries and writes the files.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

from wai_protocol.errors import AuthError, Fault, RequestError, TransportError
from wai_protocol.surface import Headers
from wai_transport.answer_pieces import AnswerPieces
from wai_transport.http_client import HttpClient
from wai_transport.http_proxy import DIRECT, ProxySettings
from wai_transport.http_request import Timeouts
from wai_transport.origin import Origin

MAX_REDIRECTS: Final = 5
BUFFER_BYTES: Final = 1 << 20  # the most that is buffered for a slow disk
# A server that sends nothing for so long is given up; the retry uses a new connection.
TIMEOUTS: Final = Timeouts(connect_s=15.0, first_byte_s=60.0, between_s=30.0)
USER_AGENT: Final = b"wai-node"
# 18 digits are an exabyte; `int` raises for numbers of thousands of digits
_CONTENT_RANGE: Final = re.compile(rb"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_NUMBER: Final = re.compile(rb"\d{1,18}")
_URL_CHARS: Final = bytes(range(0x21, 0x7F)).decode()
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class RetryLater(TransportError):
    """The hub or its storage failed temporarily, so a retry makes sense."""


class Incoming(AnswerPieces):
    """The body of one answer, read in pieces; raises `RetryLater` where it does not come.

    `offset` is the position in the file of its first byte; `total` is the file's size if the server
    says it, else None.
    """

    def __init__(self) -> None:
        super().__init__(BUFFER_BYTES, RetryLater)
        self.offset = 0
        self.total: int | None = None


class Transfer:
    """Reads files of one hub. `token` is sent to the origin of `endpoint` only. `server`: what
    errors call it."""

    def __init__(
        self,
        endpoint: str,
        token: str | None,
        timeouts: Timeouts = TIMEOUTS,
        *,
        proxies: ProxySettings = DIRECT,
        server: str = "the hub",
    ) -> None:
        self._server = server
        self._home, _ = Origin.parse(endpoint)
        self._token = token
        self._timeouts = timeouts
        self._proxies = proxies

    async def read_range(self, url: str, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset`, fewer at the file's end. Raises `WaiError`."""
        found = bytearray()
        async with self.open(url, offset, offset + count - 1) as body:
            if body.offset != offset:
                raise TransportError(
                    f"{self._server}'s storage does not serve parts of files", Fault.UPSTREAM_BROKE
                )
            while len(found) < count:
                data = await body.read()
                if not data:
                    break
                found += data
        if not found:
            raise RetryLater(f"{self._server}'s storage sent an empty answer", Fault.UPSTREAM_BROKE)
        return bytes(found[:count])

    @asynccontextmanager
    async def open(
        self, url: str, offset: int = 0, last: int | None = None
    ) -> AsyncIterator[Incoming]:
        """GET `url` from `offset` to `last` (inclusive; None: to the end).

        The server may ignore the range: check `Incoming.offset`. Raises `RetryLater`, or another
        `WaiError` if a retry would be answered the same.
        """
        home = True
        name = urlsplit(url).path.rsplit("/", 1)[-1][:100]  # the storage's own name is a hash
        for _ in range(MAX_REDIRECTS + 1):
            origin, target = _split(url)
            home = home and origin == self._home
            client = HttpClient(origin, timeouts=self._timeouts, proxies=self._proxies)
            try:
                body = Incoming()
                headers = self._headers(offset, last, with_token=home)
                body.request = client.request("GET", target, headers, body)
                body.request.end()
                await body.head()
                if body.status in _REDIRECTS:
                    url = _next_url(url, body.headers.get(b"location", b""), self._server)
                    continue
                _check_answer(body, name, self._server)
                yield body
                return
            finally:
                if body.request is not None:
                    body.request.close()
                await client.aclose()
        raise TransportError(f"{self._server} redirects too many times", Fault.UPSTREAM_BROKE)

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


def _next_url(url: str, location: bytes, server: str) -> str:
    try:
        following = urljoin(url, quote(location, safe=_URL_CHARS))
        scheme = urlsplit(following).scheme
    except ValueError:
        location = b""
    if not location:
        raise TransportError(f"{server} redirects to an invalid address", Fault.UPSTREAM_BROKE)
    if urlsplit(url).scheme == "https" and scheme != "https":
        raise TransportError(f"{server} redirects from https to http", Fault.UPSTREAM_BROKE)
    return following


def _check_answer(body: Incoming, name: str, server: str) -> None:
    """Set `offset` and `total` from a good answer; raise for any other."""
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
                raise AuthError(f"{server} does not let this node read {name}", Fault.FORBIDDEN)
            # the storage refuses expired links; a retry gets a new one
            raise RetryLater(f"{server}'s storage answered {body.status} for {name}")
        case 404:
            raise RequestError(f"{server} has no file {name} any more", Fault.NOT_FOUND)
        case 416:
            raise RequestError(f"{name} is shorter than the part that was downloaded already")
        case status if status == 429 or status >= 500:
            after = body.headers.get(b"retry-after", b"")
            wait_s = float(after) if _NUMBER.fullmatch(after) else None
            raise RetryLater(f"{server} answered {status} for {name}", retry_after_s=wait_s)
        case status:
            raise TransportError(f"{server} answered {status} for {name}", Fault.UPSTREAM_BROKE)
