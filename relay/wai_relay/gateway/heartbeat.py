"""Comments for a streaming caller who waits long for the first token, so that no proxy cuts it off.

The first one commits the response to `200 text/event-stream`: what goes wrong after it is told as
an error event. It is a timer and no task: most requests are answered long before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .dialects import EVENT_STREAM
from .reply import Reply


class Timer(Protocol):
    """What `call_later` gives."""

    def cancel(self) -> None:
        """Never call back."""


CallLater = Callable[[float, Callable[[], None]], Timer]


class Heartbeat:
    """Sends a comment every `interval_s` until it is stopped."""

    def __init__(self, reply: Reply, interval_s: float, call_later: CallLater) -> None:
        self._reply = reply
        self._interval_s = interval_s
        self._call_later = call_later
        self._timer: Timer | None = call_later(interval_s, self._beat)

    def stop(self) -> None:
        """Send no more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        reply, exchange = self._reply, self._reply.exchange
        if not exchange.started:
            reply.start(200, [(b"content-type", EVENT_STREAM), (b"cache-control", b"no-cache")])
        if not exchange.paused:
            exchange.write(reply.rules.comment)
        self._timer = self._call_later(self._interval_s, self._beat)
