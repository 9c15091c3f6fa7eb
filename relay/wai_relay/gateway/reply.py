"""What a caller is being sent, and the one rule for how it breaks once it has begun.

A stream of events or lines says in its dialect what went wrong, and ends; a WebSocket is closed
with the reason; anything else is aborted, for an error inside a half-sent document would look like
a clean end.
"""

from __future__ import annotations

from typing import Final

from wai_protocol.errors import Fault
from wai_protocol.surface import Headers, Route
from wai_relay.http.exchange import Exchange

from .dialects.dialect import EVENT_STREAM, Dialect
from .dialects.usage import UsageReader
from .messages import Messages
from .opening import Opening, opening_for

JSON: Final = b"application/json"
OUR_FAULT: Final = "Something is wrong with this relay; its log says what."
UNBUFFERED: Final = (b"x-accel-buffering", b"no")
"""nginx, with a plain `proxy_pass`, would collect an answer and pass it on in large pieces."""

# Statuses with which an upstream finds fault with the request itself, and not with how, when or by
# whom it was asked: its form, its length, the type or the fields of its body.
_CALLERS_MISTAKES: Final = frozenset({400, 413, 415, 422})


def is_failure(status: int) -> bool:
    """Whether an upstream's status says that it failed a request which another may well serve: it
    refuses the key that its own node gave it, does not know a model that it listed or a route that
    others have, is out of credit, or takes no more requests."""
    return status >= 400 and status not in _CALLERS_MISTAKES


class CallerReply:
    """One request's response. Whoever begins it does so here; its bytes go to `exchange`.

    `reader`: who watches what passes, if an upstream's answer does; it knows whether an event was
    half sent.
    """

    __slots__ = ("_streamed", "dialect", "exchange", "reader")

    reads_usage = False
    """Whether the usage of a stream is wanted here, even if the caller did not ask for it."""

    def __init__(self, exchange: Exchange, dialect: Dialect) -> None:
        self.exchange = exchange
        self.dialect = dialect
        self.reader: UsageReader | None = None
        self._streamed = False

    def passes(self, status: int) -> bool:
        """Whether an upstream's answer with this status may go to the caller as it is."""
        return status < 400

    def opening(self, route: Route, status: int, content_type: bytes) -> Opening:
        """Who holds the opening of an upstream's answer to `route`."""
        return opening_for(self.dialect, route, status, content_type)

    def start(self, status: int, headers: Headers) -> None:
        """Send the head. What comes piece by piece, also speech, is marked as `UNBUFFERED`."""
        named = dict(headers)
        content_type = named.get(b"content-type", b"").strip().lower()
        self._streamed = content_type.startswith((self.dialect.stream_type, EVENT_STREAM))
        if b"content-length" not in named and not content_type.startswith(JSON):
            headers = [*headers, UNBUFFERED]
        self.exchange.start(status, headers)

    def break_off(self, fault: Fault, message: str) -> None:
        """End what has begun so that nobody takes it for whole."""
        if isinstance(self.reader, Messages) and (close := self.reader.closing(fault, message)):
            self.exchange.write(close)
            self.exchange.end()
            return
        if not self._streamed:
            self.exchange.abort()
            return
        half = b"" if self.reader is None else self.reader.broken()
        self.exchange.write(half + self.dialect.error_event(fault, message))
        self.exchange.end()
