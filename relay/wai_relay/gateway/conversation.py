"""One attempt at a WebSocket: an `Answer` whose bytes go both ways once the upstream has agreed.

Until then it is an attempt like any other, and another upstream may be tried. Afterwards what the
upstream sends are frames: they pass as they are, and what each answer cost is read from them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

from wai_protocol.errors import Fault, WaiError
from wai_protocol.surface import Headers, Route
from wai_protocol.websocket import protocol_fields, protocols_in
from wai_relay.contracts.api_keys import without_key
from wai_relay.http.exchange import Request

from .answer import Answer, Phase
from .limits import GatewayLimits
from .messages import Messages
from .reply import CallerReply

CHARGED_TOGETHER: Final = 64
"""Tokens that an answer within a conversation may take before its key is charged with them, if the
answer's end does not come first."""

_NONE_THERE: Final = frozenset({403, 404, 405, 501})
"""How a server answers the handshake of a WebSocket that it lacks. 403 is Starlette's way."""

_MODEL_FIELD: Final = "model="


class Conversation(Answer):
    """See the module. `on_tokens` is called with the tokens of each answer within it; what it
    raises ends the conversation."""

    def __init__(
        self,
        reply: CallerReply,
        route: Route,
        labels: Headers,
        limits: GatewayLimits,
        clock: Callable[[], float],
        on_first_content: Callable[[Answer], None],
        *,
        on_tokens: Callable[[int], None],
    ) -> None:
        super().__init__(reply, route, labels, limits, clock, on_first_content)
        self._on_tokens = on_tokens
        self.accepted = asyncio.Event()
        self._messages = Messages()
        self._told = 0

    def on_headers(self, status: int, headers: Headers) -> None:
        """See `Sink`. A 200 is the upstream's 101 (SPEC section 5)."""
        if self._phase is not Phase.WAITING:
            return
        if status in _NONE_THERE:
            message = f"The model's server has no WebSocket {self._route.path} (status {status})."
            self._give_up_upstream(Fault.ROUTE_REFUSED, message)
            return
        if status != 200:
            super().on_headers(status, headers)
            return
        self.status = 101
        self._last_at = self.sent_at = self._clock()
        self.first_byte_at = self.first_content_at = self._last_at
        self._on_first_content(self)
        self._reader = self._reply.reader = self._messages
        chosen = _chosen(protocols_in(headers), protocols_in(self._exchange.request.headers))
        self._exchange.switch(self._labels + protocol_fields(chosen))
        self._phase = Phase.PASSING
        self.accepted.set()

    def on_data(self, data: bytes) -> None:
        """See `Sink`. Once per frame or so."""
        super().on_data(data)
        if self._phase is not Phase.PASSING:
            return
        messages = self._messages
        more = messages.counts(0).total - self._told
        if more >= CHARGED_TOGETHER or (more > 0 and not messages.chunks):
            self._told += more
            try:
                self._on_tokens(more)
            except WaiError as error:
                self.give_up(error.fault, str(error))

    def _end(self) -> None:
        """The upstream has closed: with a Close frame, or visibly without."""
        if not self.accepted.is_set():
            super()._end()
        elif not self._messages.ended:
            self._cut(Fault.UPSTREAM_BROKE, "The upstream's connection broke.")
        else:
            self._exchange.end()
            self._finish()


def offered_protocols(request: Request) -> Headers:
    """The subprotocols that the caller offers, for the upstream: without its key."""
    return protocol_fields(without_key(protocols_in(request.headers)))


def _chosen(by_upstream: list[bytes], offered: list[bytes]) -> list[bytes]:
    """The subprotocol of the caller's WebSocket. A browser insists on one if it offered any, and a
    page must offer one for its key; not all servers choose one."""
    others = without_key(offered)
    if by_upstream or len(others) == len(offered):
        return by_upstream[:1]
    return others[:1] or offered[:1]


def target_with_model(target: str, model: str) -> str:
    """`target` with `model` in the place of the one that its query names, if it names one."""
    path, _, query = target.partition("?")
    fields = [
        _MODEL_FIELD + quote(model, safe="") if field.startswith(_MODEL_FIELD) else field
        for field in query.split("&")
    ]
    return f"{path}?{'&'.join(fields)}" if query else path
