"""The opening of an answer: all that comes before its first content, held back until that comes.

A 200 is not yet an answer: its stream may begin with an error event, may carry nothing but a role
and then stop, or may be an HTML page. While the opening is held, the attempt can fail without a
trace and another upstream can serve the request. Once the first content is there (text, reasoning,
a tool call, audio), or the answer's proper end, what was held goes to the caller in one piece.

Pure: bytes in, a verdict out. Which events carry content is the dialect's to say (`dialects`).
"""

from __future__ import annotations

import abc
import re
from codecs import BOM_UTF8
from typing import Any, Final, NamedTuple, assert_never

from wai_protocol.errors import Fault
from wai_protocol.surface import EXTRA_API, Route, Task

from .dialects.dialect import (
    EVENT_STREAM,
    NDJSON,
    REPORTED,
    Dialect,
    Signal,
    SignalOf,
    error_in,
    sentence_in,
)
from .dialects.usage import decode

HELD_BYTES: Final = 64 * 1024
"""Of an opening that is held. Real ones (a role, `response.created` with the request's own fields)
are under 8 KiB; a longer one is passed on, since nobody may make the relay hold more."""

DOCUMENT_BYTES: Final = 4 * 1024
"""Of a whole JSON answer that is looked at: every server's error document is shorter."""

COMMENT_BYTES: Final = 4 * 1024
"""Of an opening with comments that are held; later ones are left out, for they may come for ever,
and the caller gets heartbeats meanwhile."""

PEEK_BYTES: Final = 64  # enough to see whether a stream begins as its kind must

_REPORT_CHARS: Final = 1000  # of the sentence of a program on the way, where no server answers
_NEVER_EMPTY: Final = ("choices", "data")  # there is one for each that was asked for
_EVENT_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_FIELDS: Final = (b"data", b"event", b"id", b"retry")


class OpeningVerdict(NamedTuple):
    """What is known of an answer. `begins`: pass on all that was held. `fault`: it failed, and
    `message` is the upstream's own sentence, if it had one. Neither: go on holding."""

    begins: bool = False
    fault: Fault | None = None
    message: str = ""


HOLD: Final = OpeningVerdict()
BEGIN: Final = OpeningVerdict(begins=True)


class Opening(abc.ABC):
    """Collects the first bytes of one answer."""

    def __init__(self) -> None:
        self._held = bytearray()

    @property
    def held(self) -> bytes:
        """What was fed so far."""
        return bytes(self._held)

    @abc.abstractmethod
    def feed(self, data: bytes) -> OpeningVerdict:
        """Take body bytes. After a verdict other than `HOLD` it must not be fed again."""

    @abc.abstractmethod
    def finish(self) -> OpeningVerdict:
        """The answer ended before a verdict; never `HOLD`."""


class AnyBytes(Opening):
    """An answer that can't be judged (audio, a format that we do not read): it begins at once.
    `may_be_empty`: whether one without any byte is an answer too."""

    def __init__(self, *, may_be_empty: bool) -> None:
        super().__init__()
        self._may_be_empty = may_be_empty

    def feed(self, data: bytes) -> OpeningVerdict:
        """See `Opening`."""
        self._held += data
        return BEGIN

    def finish(self) -> OpeningVerdict:
        """See `Opening`."""
        return BEGIN if self._may_be_empty else _empty()


class Misnamed(Opening):
    """An answer whose content type no model server uses for this route (an HTML page)."""

    def feed(self, data: bytes) -> OpeningVerdict:
        """See `Opening`."""
        del data
        return self.finish()

    def finish(self) -> OpeningVerdict:
        """See `Opening`."""
        return OpeningVerdict(fault=Fault.UPSTREAM_BROKE, message="The upstream sent a web page.")


class Document(Opening):
    """One JSON document. A short one is read to see whether it is an error inside a 200: also one
    that has none of `fields`."""

    def __init__(self, fields: tuple[str, ...]) -> None:
        super().__init__()
        self._fields = fields

    def feed(self, data: bytes) -> OpeningVerdict:
        """See `Opening`."""
        self._held += data
        start = self._held[:16].lstrip(b" \t\r\n" + BOM_UTF8)[:1]
        if start and not start.startswith((b"{", b"[")):
            return _not_as_named()
        return BEGIN if len(self._held) > DOCUMENT_BYTES else HOLD

    def finish(self) -> OpeningVerdict:
        """See `Opening`."""
        held = self.held
        if not held.strip():
            return _empty()
        found = decode(held)
        if found is None:
            return _broke("The upstream's answer ended in the middle.")
        return verdict_on(found, self._fields)


class Undeclared(Opening):
    """A document or a stream whose content type does not say which (`text/plain`, or none): its
    first byte does. What begins as neither is a sentence of some program on the way."""

    def __init__(self, fields: tuple[str, ...], signal_of: SignalOf) -> None:
        super().__init__()
        self._fields = fields
        self._signal_of = signal_of
        self._known: Opening | None = None

    @property
    def held(self) -> bytes:
        """See `Opening`."""
        return super().held if self._known is None else self._known.held

    def feed(self, data: bytes) -> OpeningVerdict:
        """See `Opening`."""
        if self._known is None:
            self._held += data
            start = self._held[:PEEK_BYTES].lstrip(b" \t\r\n" + BOM_UTF8)[:1]
            if not start:
                return HOLD if len(self._held) < PEEK_BYTES else _not_as_named()
            whole = start.startswith((b"{", b"["))
            self._known = Document(self._fields) if whole else EventStream(self._signal_of)
            data = super().held
        return self._known.feed(data)

    def finish(self) -> OpeningVerdict:
        """See `Opening`."""
        return _empty() if self._known is None else self._known.finish()


class EventStream(Opening):
    """Server-sent events."""

    def __init__(self, signal_of: SignalOf) -> None:
        super().__init__()
        self._signal_of = signal_of
        self._read = 0  # of what is held, the bytes of whole events that were judged
        self._search_from = 0

    def feed(self, data: bytes) -> OpeningVerdict:
        """See `Opening`."""
        self._held += data
        if not self._read and not _may_begin_events(bytes(self._held[:PEEK_BYTES])):
            return _not_as_named()
        while found := _EVENT_END.search(self._held, self._search_from):
            event = bytes(self._held[self._read : found.start()])
            self._read = self._search_from = found.end()
            verdict = self._judge(event)
            if verdict is not HOLD:
                return verdict
            if event[:1] == b":" and self._read > COMMENT_BYTES:
                del self._held[found.start() - len(event) : self._read]
                self._read = self._search_from = found.start() - len(event)
        # An event's end may be cut in two; all before it was searched.
        self._search_from = max(self._read, len(self._held) - 3)
        return BEGIN if len(self._held) > HELD_BYTES else HOLD

    def finish(self) -> OpeningVerdict:
        """See `Opening`. Servers may leave out the last event's empty line."""
        verdict = self._judge(bytes(self._held[self._read :]))
        return _said_nothing() if verdict is HOLD else verdict

    def _judge(self, event: bytes) -> OpeningVerdict:
        name, data = b"", []
        for line in _LINE_END.split(event):
            field, _, value = line.partition(b":")
            if field == b"event":
                name = value.strip()
            elif field == b"data":
                data.append(value.removeprefix(b" "))
        if not data:
            return HOLD  # a comment, or nothing at all
        return _verdict(self._signal_of, name.decode("latin-1"), b"\n".join(data))


class Lines(Opening):
    """NDJSON: one JSON object a line."""

    def __init__(self, signal_of: SignalOf) -> None:
        super().__init__()
        self._signal_of = signal_of
        self._read = 0
        self._search_from = 0

    def feed(self, data: bytes) -> OpeningVerdict:
        """See `Opening`."""
        self._held += data
        if not self._read and bytes(self._held[:PEEK_BYTES]).lstrip()[:1] not in (b"", b"{"):
            return _not_as_named()
        while (end := self._held.find(b"\n", self._search_from)) >= 0:
            line = bytes(self._held[self._read : end]).strip()
            self._read = self._search_from = end + 1
            if line and (verdict := _verdict(self._signal_of, "", line)) is not HOLD:
                return verdict
        self._search_from = len(self._held)
        return BEGIN if len(self._held) > HELD_BYTES else HOLD

    def finish(self) -> OpeningVerdict:
        """See `Opening`."""
        rest = bytes(self._held[self._read :]).strip()
        verdict = _verdict(self._signal_of, "", rest) if rest else HOLD
        return _said_nothing() if verdict is HOLD else verdict


def opening_for(dialect: Dialect, route: Route, status: int, content_type: bytes) -> Opening:
    """Who holds the opening of an answer with this status and (lower-case) content type."""
    media_type = content_type.partition(b";")[0].strip()
    if status != 200 or route.api == EXTRA_API:
        return AnyBytes(may_be_empty=status >= 300 or not route.generates)
    fields = dialect.answer_fields(route)
    if media_type == EVENT_STREAM:
        return EventStream(dialect.signal_of(route))
    if media_type == NDJSON and (fields or dialect.stream_type == NDJSON):
        return Lines(dialect.signal_of(route))
    if media_type == b"application/json" or media_type.endswith(b"+json"):
        return Document(fields)
    if media_type == b"text/html":
        return Misnamed()
    if fields:
        return Undeclared(fields, dialect.signal_of(route))
    # A file that is asked for has bytes; a recording may have no words.
    return AnyBytes(may_be_empty=route.task not in (Task.GENERATE, Task.READ))


def verdict_on(document: object, fields: tuple[str, ...]) -> OpeningVerdict:
    """What a whole JSON answer says: `BEGIN` if it is one. See `Dialect.answer_fields`."""
    if (message := error_in(document)) is not None:
        return _broke(message)
    first = document[0] if isinstance(document, list) and document else document
    if not isinstance(first, dict):
        return _said_nothing() if fields else BEGIN
    for field in _NEVER_EMPTY:
        if first.get(field) == []:
            return _said_nothing()
    if not _has_answer(first, fields):
        return _broke(sentence_in(first) or str(first.get("message") or "")[:_REPORT_CHARS])
    return BEGIN


def _has_answer(document: dict[str, Any], fields: tuple[str, ...]) -> bool:
    """Whether a whole JSON answer has one of the fields that it must have."""
    for field in fields:  # of which the first is nearly always there: no generator
        if document.get(field) is not None:
            return True
    return not fields


def _verdict(signal_of: SignalOf, name: str, data: bytes) -> OpeningVerdict:
    """What one event's raw data says of the answer."""
    if data.strip() == b"[DONE]":
        return _said_nothing()  # nor a reason to have finished
    payload = decode(data)
    if not isinstance(payload, dict):
        return _not_as_named()
    match signal_of(name, payload):
        case Signal.PREAMBLE:
            return HOLD
        case Signal.CONTENT | Signal.END:
            return BEGIN
        case Signal.ERROR:
            return _broke(error_in(payload) or "")
        case unreachable:
            assert_never(unreachable)


def _may_begin_events(data: bytes) -> bool:
    """Whether an event stream may begin with `data`, which may be only its first bytes."""
    line = data.removeprefix(BOM_UTF8).lstrip(b"\r\n")
    if not line or line[:1] == b":":
        return True
    field = _LINE_END.split(line, maxsplit=1)[0].partition(b":")[0]
    return any(field == known or known.startswith(line) for known in _FIELDS)


def _empty() -> OpeningVerdict:
    return _broke("The upstream sent an empty answer.")


def _said_nothing() -> OpeningVerdict:
    return _broke("The upstream's answer ended before it said anything.")


def _broke(message: str) -> OpeningVerdict:
    return OpeningVerdict(fault=Fault.UPSTREAM_BROKE, message=message or REPORTED)


def _not_as_named() -> OpeningVerdict:
    return _broke("The upstream's answer is not what its content type says.")
