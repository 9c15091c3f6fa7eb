"""One HTTP exchange with a caller, whatever the version it arrived by.

The edge (`h1`, `h2`) makes an `Exchange` per request and runs the relay's handler with it, in a
task of its own. The request's body is pulled (`read`), so that an upload waits for whoever takes
it; the response is pushed (`start`, `write`, `end`), so that a token costs plain calls and no task
switch. When the caller goes away the edge cancels the handler's task: cleaning up is a `finally`.

Contract for the handler: call `start` once, then `write` any number of times, then exactly one of
`end` or `abort`. A handler that returns or raises without that is a bug; the edge then aborts.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field

from wai_protocol.surface import Headers


@dataclass(slots=True)
class Request:
    """A request's head, already checked by the edge.

    `path` is the decoded-nowhere raw path, `query` what follows `?` (without it, "" if none).
    Header names are lower-case. `content_length` is None where the body's length is not known
    beforehand; `peer` is the caller's address for the log. `request_id` is ours ("req_…").
    """

    method: str
    path: str
    query: str
    headers: Headers
    http_version: str
    scheme: str
    authority: str
    peer: str
    request_id: str
    content_length: int | None
    index: dict[bytes, bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.index = dict(reversed(self.headers))  # the first of a repeated header wins

    def header(self, name: bytes, default: bytes = b"") -> bytes:
        """The first value of the header `name` (lower-case), or `default`."""
        return self.index.get(name, default)


class Exchange(abc.ABC):
    """A request and the way to answer it. Not thread-safe; belongs to one loop."""

    request: Request

    # -- the request's body
    @abc.abstractmethod
    async def read(self) -> bytes:
        """The next piece of the request's body as it arrived, b"" at its end (and ever after).

        Once `edge.READ_AHEAD_BYTES` wait here, the caller's connection is not read further (h1); an
        h2 stream has the window `h2.STREAM_WINDOW_BYTES`, which opens as the body is read. Raises
        `RequestError` on broken framing.
        """

    # -- the response
    @abc.abstractmethod
    def start(self, status: int, headers: Headers) -> None:
        """Send the response's head. The edge adds Date, X-Request-Id, and the framing headers
        (`content-length` is passed on where given, else h1 frames by chunks)."""

    @abc.abstractmethod
    def write(self, data: bytes) -> None:
        """Send body bytes at once (they leave at the end of this loop turn). Never blocks."""

    @abc.abstractmethod
    def end(self) -> None:
        """End the response cleanly."""

    @abc.abstractmethod
    def abort(self) -> None:
        """End the response visibly broken: h1 resets the connection, h2 the stream. Idempotent,
        and harmless after `end`."""

    @property
    @abc.abstractmethod
    def started(self) -> bool:
        """Whether the head has been sent."""

    # -- back-pressure of the response
    @property
    @abc.abstractmethod
    def paused(self) -> bool:
        """Whether the caller is slow: more than `edge.WRITE_HIGH_WATER_BYTES` wait to be sent.
        `write` still takes data; who feeds it stops granting credit until `on_resume`."""

    on_resume: Callable[[], None] | None = None
    """Set by the handler; called when `paused` becomes False."""

    @property
    @abc.abstractmethod
    def bytes_in(self) -> int:
        """Body bytes read from the caller so far."""

    @property
    @abc.abstractmethod
    def bytes_out(self) -> int:
        """Body bytes given to `write` so far."""
