"""Comments for a streaming caller who hears nothing for long, so that no proxy cuts it off.

They go on until the answer is over: a model may think for a minute between two tokens. The first
one, before any answer, commits the response to `200 text/event-stream`: what goes wrong after it is
told as an error event. It is a timer and no task, and costs a token nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .reply import CallerReply


class Timer(Protocol):
    """What `call_later` gives."""

    def cancel(self) -> None:
        """Never call back."""


CallLater = Callable[[float, Callable[[], None]], Timer]


class PassingAnswer(Protocol):
    """What a heartbeat asks of an attempt's answer."""

    sent_at: float
    """When the caller was sent something last."""

    @property
    def takes_comment(self) -> bool:
        """Whether a comment may be sent now."""


class Heartbeat:
    """Sends a comment whenever the caller heard nothing for `interval_s`, until it is stopped."""

    def __init__(
        self,
        reply: CallerReply,
        interval_s: float,
        clock: Callable[[], float],
        call_later: CallLater,
    ) -> None:
        self.answer: PassingAnswer | None = None
        """The answer that the caller hears, once one passes."""
        self._reply = reply
        self._interval_s = interval_s
        self._clock = clock
        self._call_later = call_later
        self._sent_at = clock()
        self._timer: Timer | None = call_later(interval_s, self._beat)

    def stop(self) -> None:
        """Send no more. Idempotent."""
        self.answer = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        answer, now = self.answer, self._clock()
        if answer is not None:
            self._sent_at = max(self._sent_at, answer.sent_at)
        left_s = self._sent_at + self._interval_s - now
        if left_s <= 0:
            if answer is None or answer.takes_comment:
                self._send()
            self._sent_at = now
            left_s = self._interval_s
        self._timer = self._call_later(left_s, self._beat)

    def _send(self) -> None:
        reply, exchange = self._reply, self._reply.exchange
        if not exchange.started:
            content_type = reply.dialect.stream_type
            reply.start(200, [(b"content-type", content_type), (b"cache-control", b"no-cache")])
        if not exchange.paused:
            exchange.write(reply.dialect.heartbeat)
