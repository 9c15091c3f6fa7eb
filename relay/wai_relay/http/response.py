"""The state of a response that both HTTP versions share: started, announced length, sent, finished.

`h1_response` and `h2_stream` frame and send the bytes. Each has the whole of `write`, because a
shared part would cost one more call for each token.
"""

from __future__ import annotations

import abc
from typing import Final

from wai_protocol.errors import LocalProtocolError
from wai_protocol.surface import Headers

from .body import RequestBody
from .edge import ServedExchange
from .exchange import Request

# Fields that the edge sets itself for its own hop, or that are not sent at all (hop-by-hop).
_NOT_PASSED_ON: Final = frozenset(
    {
        b"connection",
        b"proxy-connection",
        b"keep-alive",
        b"transfer-encoding",
        b"upgrade",
        b"date",
        b"x-request-id",
    }
)
_BODILESS: Final = frozenset({204, 304})


class CountedExchange(ServedExchange):
    """An exchange that aborts a response whose length differs from its Content-Length."""

    __slots__ = (
        "_bodiless",
        "_bytes_out",
        "_finished",
        "_left",
        "_started",
        "added_headers",
        "body",
        "on_resume",
        "request",
    )

    def __init__(self, request: Request, body: RequestBody) -> None:
        self.request = request
        self.body = body
        self.added_headers = ()
        self.on_resume = None
        self._left: int | None = None  # bytes missing to the announced Content-Length
        self._bodiless = False
        self._started = False
        self._finished = False
        self._bytes_out = 0

    def _fields_to_send(self, status: int, headers: Headers) -> Headers:
        """Return the fields of a head that are sent, and note the announced Content-Length.

        Raises `LocalProtocolError` if the response has started, or `status` is not a final one.
        """
        if self._started or not 200 <= status <= 599:
            raise LocalProtocolError(f"a response can't start with status {status} now")
        named = dict(headers)
        if not _NOT_PASSED_ON.isdisjoint(named):
            headers = [field for field in headers if field[0] not in _NOT_PASSED_ON]
        fields = [*headers, *self.added_headers]
        if (length := named.get(b"content-length")) is not None:
            self._left = int(length)
            if status == 204:
                fields.remove((b"content-length", length))
        self._bodiless = self.request.method == "HEAD" or status in _BODILESS
        return fields

    def end(self) -> None:
        """End the response, or abort it if it is shorter than its Content-Length."""
        if self.finished:
            return
        if not self._started:
            raise LocalProtocolError("end before start")
        if self._left and not self._bodiless:
            self.abort()
        else:
            self._end()

    @abc.abstractmethod
    def _end(self) -> None:
        """Send the end of the response; the whole body was written."""

    @property
    def at_end(self) -> bool:
        """See `Exchange.at_end`."""
        return self.body.complete and not self.body.waiting_bytes

    @property
    def started(self) -> bool:
        """Whether the head has been sent."""
        return self._started

    @property
    def bytes_in(self) -> int:
        """Bytes of the request's body read so far."""
        return self.body.read_bytes

    @property
    def bytes_out(self) -> int:
        """Bytes of the response's body passed to `write` so far."""
        return self._bytes_out
