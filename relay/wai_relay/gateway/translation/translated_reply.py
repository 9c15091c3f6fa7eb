"""The caller's response to a translated request, as the forwarding of its translation sees it.

The forwarding handles a translated request as the chat completion that it becomes: it holds the
opening, counts tokens and continues cut streams in the upstream's dialect. What it writes is
translated here, last, on its way to the caller.
"""

from __future__ import annotations

from typing import Any, Final

from wai_protocol.errors import Fault
from wai_protocol.surface import Headers, Route
from wai_relay.gateway.dialects.dialect import EVENT_STREAM, Dialect
from wai_relay.gateway.dialects.usage import decode
from wai_relay.gateway.opening import (
    BEGIN,
    HOLD,
    Opening,
    OpeningVerdict,
    opening_for,
    verdict_on,
)
from wai_relay.gateway.reply import JSON, CallerReply
from wai_relay.http.exchange import Exchange
from wai_relay.http.wrapped_exchange import WrappedExchange

from .chat_stream import ChatStream
from .translation import Translation

MAX_DOCUMENT_BYTES: Final = 16 * 1024 * 1024
"""Of a whole answer, which is held until it is complete: some 700 embeddings of 1,024 numbers."""

TRANSLATED: Final = b"x-wai-translated"
"""The response header that names the upstream's route."""

_FRAMING: Final = frozenset({b"content-type", b"content-length"})
_BROKEN: Final = "The upstream's answer is not what its content type says."


class _Content:
    """What an answer's bytes become. The reply and its exchange share it, and hold it both, so that
    neither holds the other."""

    __slots__ = ("document", "stream", "translation")

    def __init__(self, translation: Translation, *, streams: bool) -> None:
        self.translation = translation
        self.stream: ChatStream | None = translation.stream() if streams else None
        self.document = b""

    def take_whole(self, document: dict[str, Any]) -> None:
        """The upstream's answer is this document."""
        if self.stream is not None:  # it does not stream, or not this
            self.document = self.stream.whole(document)
        else:
            self.document = self.translation.answer(document)

    def translated(self, data: bytes) -> bytes:
        """What the caller gets of the upstream's `data`."""
        return b"" if self.document or self.stream is None else self.stream.feed(data)

    def rest(self) -> bytes:
        """What the caller gets at the end."""
        return self.document or (b"" if self.stream is None else self.stream.finish())


class TranslatedReply(CallerReply):
    """See the module. `reply` is the caller's own; `upstream` the dialect that the answer is in."""

    __slots__ = ("_content", "caller")

    reads_usage = True

    def __init__(
        self, reply: CallerReply, upstream: Dialect, translation: Translation, *, streams: bool
    ) -> None:
        self._content = _Content(translation, streams=streams)
        self.caller = reply
        super().__init__(_TranslatedExchange(reply.exchange, self._content), upstream)

    def passes(self, status: int) -> bool:
        """See `CallerReply`. Only what is an answer can be translated."""
        return status == 200

    def opening(self, route: Route, status: int, content_type: bytes) -> Opening:
        """See `CallerReply`. A whole answer is held until it is complete."""
        if content_type.startswith(EVENT_STREAM) and self._content.stream is not None:
            return opening_for(self.dialect, route, status, content_type)
        return _WholeAnswer(self._content, self.dialect.answer_fields(route))

    def start(self, status: int, headers: Headers) -> None:
        """See `CallerReply`."""
        headers = [pair for pair in headers if pair[0] not in _FRAMING]
        content = self._content
        if content.stream is not None:
            headers.append((b"content-type", self.caller.dialect.stream_type))
        else:
            headers.append((b"content-type", JSON))
            headers.append((b"content-length", b"%d" % len(content.document)))
        headers.append((TRANSLATED, content.translation.upstream.path.encode()))
        self.caller.start(status, headers)

    def break_off(self, fault: Fault, message: str) -> None:
        """See `CallerReply`. What is held of an event is not for the caller."""
        self.caller.break_off(fault, message)


class _WholeAnswer(Opening):
    """A whole answer, held until it is complete."""

    def __init__(self, content: _Content, fields: tuple[str, ...]) -> None:
        super().__init__()
        self._content = content
        self._fields = fields

    def feed(self, data: bytes) -> OpeningVerdict:
        """See `Opening`."""
        self._held += data
        if len(self._held) > MAX_DOCUMENT_BYTES:
            return _unusable("The upstream's answer is too long to be translated.")
        return HOLD

    def finish(self) -> OpeningVerdict:
        """See `Opening`."""
        found = decode(self.held)
        if not isinstance(found, dict):
            return _unusable(_BROKEN)
        verdict = verdict_on(found, self._fields)
        if verdict is BEGIN:
            self._content.take_whole(found)
        return verdict


def _unusable(message: str) -> OpeningVerdict:
    return OpeningVerdict(fault=Fault.UPSTREAM_BROKE, message=message)


class _TranslatedExchange(WrappedExchange):
    """An exchange whose response's bytes are translated before they are written."""

    def __init__(self, exchange: Exchange, content: _Content) -> None:
        super().__init__(exchange)
        self._content = content

    def write(self, data: bytes) -> None:
        """See `Exchange`."""
        if out := self._content.translated(data):
            self.inner.write(out)

    def end(self) -> None:
        """See `Exchange`."""
        if out := self._content.rest():
            self.inner.write(out)
        self.inner.end()
