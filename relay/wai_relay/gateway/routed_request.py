"""A request that was understood: what all of its attempts share."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from wai_protocol.surface import Route
from wai_relay.contracts.records import RequestRecord
from wai_relay.contracts.upstream import UpstreamStream
from wai_relay.observe.live import LiveRequest
from wai_relay.policy.admission import Permit

from .continuation import Continuation
from .heartbeat import Heartbeat
from .intake import Body, Intake
from .reply import CallerReply


class RoutedRequest(msgspec.Struct):
    """See the module. Belongs to the task that answers the request."""

    reply: CallerReply
    route: Route
    target: str
    intake: Intake
    body: Body
    record: RequestRecord
    live: LiveRequest
    permit: Permit
    heartbeat: Heartbeat | None = None
    continuation: Continuation | None = None
    prompt_tokens: int | None = None
    """What an upstream counted that had no context for it."""
    stream: UpstreamStream | None = None
    """The last that was opened for it."""
    begun: bool = False
    """Whether the caller gets an answer."""
    uploading: bool = False
    """Whether the body is on its way to an upstream."""
    on_tokens: Callable[[int], None] = lambda tokens: None
    """Called with what a conversation has taken since the last call; what it raises ends it."""

    def settle(self) -> None:
        """An answer has begun: nothing will be sent a second time, unless it may be continued. What
        is still being sent is held until it was."""
        if self.begun and not self.uploading and self.continuation is None:
            self.body.forget()
            self.intake.release()

    def stop_heartbeat(self) -> None:
        """No comment any more."""
        if self.heartbeat is not None:
            self.heartbeat.stop()
