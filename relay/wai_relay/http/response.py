"""What the responses of both HTTP versions keep account of: begun, promised, sent, over.

How bytes are framed and sent is `h1_response`'s and `h2_stream`'s, and so is all of `write`: a step
that they shared there would cost every token a call more.
"""

from __future__ import annotations

import abc
from typing import Final

from wai_protocol.errors import LocalProtocolError
from wai_protocol.surface import Headers

from .body import RequestBody
from .edge import ServedExchange
from .exchange import Request

# Made by the edge for its own hop, or no field of the next one, whatever the handler passes on.
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
    """An exchange that holds its response to what its head promised."""

    __slots__ = (
        "_bodiless",
        "_bytes_out",
        "_finished",
        "_left",
        "_started",
        "body",
        "on_resume",
        "request",
    )

    def __init__(self, request: Request, body: RequestBody) -> None:
        self.request = request
        self.body = body
        self.on_resume = None
        self._left: int | None = None  # bytes until the Content-Length that was promised
        self._bodiless = False
        self._started = False
        self._finished = False
        self._bytes_out = 0

    def _fields_to_send(self, status: int, headers: Headers) -> Headers:
        """The fields of a head that are passed on; what they promise is noted.

        Raises `LocalProtocolError` where no response can start with `status`.
        """
        if self._started or not 200 <= status <= 599:
            raise LocalProtocolError(f"a response can't start with status {status} here")
        fields: Headers = []
        for name, value in headers:
            if name in _NOT_PASSED_ON:
                continue
            if name == b"content-length":
                self._left = int(value)
                if status == 204:
                    continue
            fields.append((name, value))
        self._bodiless = self.request.method == "HEAD" or status in _BODILESS
        return fields

    def end(self) -> None:
        """End cleanly, or break visibly if less came than Content-Length promised."""
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
        """Everything was written that was promised: say that this was all."""

    @property
    def started(self) -> bool:
        """Whether the head has been sent."""
        return self._started

    @property
    def bytes_in(self) -> int:
        """Body bytes read so far."""
        return self.body.read_bytes

    @property
    def bytes_out(self) -> int:
        """Body bytes given to `write` so far."""
        return self._bytes_out
