"""Reading what an answer cost from its bytes as they pass. Pure.

A `UsageReader` sits in every answer's way, so its everyday case is a few substring tests. It never
holds more than one unfinished event, or the two ends of a plain body.
"""

from __future__ import annotations

import abc
import re
from typing import Any, ClassVar, Final

import msgspec

from wai_relay.contracts.records import TokenCounts

from .lenient import decode_leniently

MAX_EVENT_BYTES: Final = 64 * 1024  # an event is held until it is whole, up to this
HEAD_BYTES: Final = 8 * 1024  # of a plain body: embeddings put `usage` before the vectors
TAIL_BYTES: Final = 16 * 1024  # everything else puts it last

MAX_OBJECT_BYTES: Final = 4096  # of a usage object; the longest real ones have 500
MAX_EVENTS_LOOKED_AT: Final = 2000  # in one read, at 3 µs each; honest ones have 200 bytes or more
MAX_LOOKS: Final = 8  # at what may be such an object: a hostile document may have thousands

# A flood of empty lines is one end. Some servers end lines by CR alone, as the standard allows.
_EVENT_END: Final = re.compile(rb"(?:\r?\n){2,}+|\r{2,}+")
_EVENT_DATA: Final = re.compile(rb"(?:^|\r)data: ?([^\r\n]*)", re.MULTILINE)
# How the streams of our dialects say that they are complete, and that they failed.
# Ollama's `response.completed` names itself last in its data, and has the whole answer before that;
# but its event's name comes first.
END_MARK: Final = re.compile(
    rb'data: ?\[DONE\]|"(?:finish|stop)_reason": ?"|"message_stop"|"done": ?true'
    rb'|(?:"|event: ?)response\.(?:completed|incomplete|failed)["\r\n]'
)
ERROR_MARK: Final = re.compile(
    rb"(?m)(?:^|\r)(?:event: ?error"
    rb'|(?:data: ?)?\{ ?"(?:error": ?(?!null)|(?:type|object)": ?"error"))'
    rb'|"finish_reason": ?"(?:error|abort)"|"error": ?\{ ?"'
)
_MARK_BYTES: Final = 1024  # of an event's beginning that is kept to look for these
ENDING_BYTES: Final = 16 * 1024
"""Of what came after the last piece of an answer: its end, an error, figures, comments."""
_ANY: Final = msgspec.json.Decoder()


class UsageReader(abc.ABC):
    """Watches one response. `feed` gives what goes on to the caller, `finish` what was still held.

    `counts` is right at any time: exact once the upstream has said so, else counted by chunks.
    """

    keeps_length: ClassVar[bool] = False
    """Whether every byte is passed on as it is, so that the answer's announced length holds."""

    def __init__(self) -> None:
        self.chunks = 0  # pieces of answer seen, the estimate of `counts.completion`
        self.said: TokenCounts | None = None
        self.answer_id = ""
        """By what a later request may refer to the answer, if its server keeps it."""

    @property
    def ended(self) -> bool:
        """Whether the answer's own end mark came. A document has none but its last byte."""
        return True

    @property
    def failed(self) -> bool:
        """Whether the last that came was an error event: the upstream itself ended the answer."""
        return False

    @property
    def between_events(self) -> bool:
        """Whether what was passed on ends at the border of an event."""
        return True

    @abc.abstractmethod
    def feed(self, data: bytes) -> bytes:
        """Take body bytes; return the ones to send now (often `data` itself, b"" for none)."""

    @abc.abstractmethod
    def finish(self) -> bytes:
        """The response ended cleanly: the rest to send."""

    def held_back(self) -> bytes:
        """The response was cut: whole events that waited for what comes after them."""
        return b""

    def broken(self) -> bytes:
        """The response was cut: what must be sent so that an error event stands by itself."""
        return b""

    def counts(self, estimated_prompt: int) -> TokenCounts:
        """What the request cost, as far as is known now."""
        if self.said is None:
            return TokenCounts(prompt=estimated_prompt, completion=self.chunks)
        if not self.said.exact:  # a cut stream that had told its prompt's tokens only
            self.said.completion = max(self.said.completion, self.chunks)
        return self.said


class EventReader(UsageReader):
    """An SSE response. Passes whole events on, so that a stream which is cut never ends inside one;
    half an event is of no use to a caller. An event over `MAX_EVENT_BYTES` goes on in pieces."""

    piece: bytes
    """What an event with a piece of answer contains."""
    end_mark: ClassVar[re.Pattern[bytes]] = END_MARK
    """Found in the event that completes an answer; without it the answer counts as cut."""
    error_mark: ClassVar[re.Pattern[bytes]] = ERROR_MARK
    """Found in the event by which the upstream ends an answer that failed."""

    def __init__(self) -> None:
        super().__init__()
        self._held = b""
        self._overlong = False
        # The last piece of answer with all that came after it: figures, comments and more may
        # follow the event that ends it.
        self._last = b""

    @property
    def ended(self) -> bool:
        """See `UsageReader`."""
        return self.end_mark.search(self._last) is not None

    @property
    def failed(self) -> bool:
        """See `UsageReader`."""
        return self.error_mark.search(self._last) is not None

    @property
    def between_events(self) -> bool:
        """See `UsageReader`."""
        return not self._overlong

    def feed(self, data: bytes) -> bytes:
        """See `UsageReader`."""
        # The everyday case: nothing held, whole events, and no figures in them. OpenAI's own
        # streams say `"usage":null` in every chunk when usage was asked for.
        if (
            not self._held
            and (
                data.find(b'"usage"') < 0  # `in` would first take it for a number, and fail
                or data.count(b'"usage"') == data.count(b'"usage":null')
            )
            and data.find(b'"timings"') < 0
            and data.endswith(b"\n\n")
            and not self._overlong
        ):
            if pieces := data.count(self.piece):
                self.chunks += pieces
                self._last = data
            else:
                self._note(data)
            return data
        return self._feed_events(data)

    def finish(self) -> bytes:
        """See `UsageReader`."""
        rest, self._held = self._held, b""
        if rest:
            self._note(rest[:_MARK_BYTES])
        return rest

    def broken(self) -> bytes:
        """See `UsageReader`."""
        self._held = b""
        return b"\n\n" if self._overlong else b""

    @abc.abstractmethod
    def observe(self, payload: Any) -> bool:
        """One event's decoded data that mentions usage. False: it is not for the caller."""

    def outgoing(self, event: bytes) -> bytes:
        """A whole event that mentions usage or timings, as the caller gets it."""
        return event

    def _feed_events(self, data: bytes) -> bytes:
        # Ends are looked for from just before the new bytes, so that a trickle costs its length.
        search_from = max(len(self._held) - 3, 0)
        data = self._held + data
        passed: list[bytes] = []
        start = usage = timings = looked = 0
        while True:
            # Events without figures go on together: one read may bring 100,000 tiny ones.
            usage = _find(data, b'"usage"', start) if usage <= start else usage
            timings = _find(data, b'"timings"', start) if timings <= start else timings
            plain = 0 if self._overlong else _last_event_end(data, start, min(usage, timings))
            if plain > start:
                self.chunks += data.count(self.piece, start, plain)
                events = data[start:plain]
                passed.append(events)
                self._note(events)
                start = search_from = plain
            found = _EVENT_END.search(data, search_from)
            if found is None or looked >= MAX_EVENTS_LOOKED_AT:
                break
            event = data[start : found.end()]
            start = search_from = found.end()
            looked += 1
            if not self._overlong:
                self._note(event[:_MARK_BYTES])
            if self._overlong or len(event) > MAX_EVENT_BYTES or self._keep(event):
                passed.append(self.outgoing(event))
            self._overlong = False
        if looked >= MAX_EVENTS_LOOKED_AT:
            end = _last_event_end(data, start, len(data))
            passed.append(data[start:end])
            start = end
        rest = data[start:]
        if self._overlong or len(rest) > MAX_EVENT_BYTES:
            # Its last bytes stay: an event's end may be cut in two.
            if not self._overlong:
                self._note(rest[:_MARK_BYTES])
            self._overlong = True
            passed.append(rest[:-3])
            rest = rest[-3:]
        self._held = rest
        return b"".join(passed)

    def _note(self, events: bytes) -> None:
        """Keep what the answer's end is told by. Comments say nothing of it."""
        if self.piece in events:
            self._last = events
        elif events[:1] != b":":
            self._last = (self._last + events)[-ENDING_BYTES:]

    def _keep(self, event: bytes) -> bool:
        self.chunks += event.count(self.piece)
        if b'"usage"' not in event and b'"timings"' not in event:
            return True
        payload = decode(b"\n".join(_EVENT_DATA.findall(event)))
        return self.observe(payload) if isinstance(payload, dict) else True


class BodyReader(UsageReader):
    """A response that is one JSON document. Passes every byte at once and remembers both ends.

    `lines`: it has one for each piece of answer, in a dialect whose streams are events.
    """

    keeps_length = True

    def __init__(self, *, lines: bool = False) -> None:
        super().__init__()
        self._lines = lines
        self._head = b""
        self._tail = bytearray()

    def feed(self, data: bytes) -> bytes:
        """See `UsageReader`."""
        room = HEAD_BYTES - len(self._head)
        if room > 0:
            self._head += data[:room]
            rest = data[room:]
        else:
            rest = data
        if rest:
            self._tail += rest[-TAIL_BYTES:]
            if len(self._tail) > 2 * TAIL_BYTES:
                del self._tail[:-TAIL_BYTES]
        if self._lines:
            self.chunks += data.count(b"\n")
        return data

    def finish(self) -> bytes:
        """See `UsageReader`."""
        found = self.figures(self._head + self._tail if self._whole else bytes(self._tail))
        self.said = found or self.figures(self._head)
        self._head = b""
        self._tail.clear()
        return b""

    @property
    def _whole(self) -> bool:
        return len(self._tail) <= TAIL_BYTES

    @abc.abstractmethod
    def figures(self, text: bytes) -> TokenCounts | None:
        """The usage in `text`, a document or the piece at one of its ends."""


def _find(data: bytes, name: bytes, start: int) -> int:
    """Where `name` stands in `data` from `start` on; the end of `data` if it does not."""
    at = data.find(name, start)
    return at if at >= 0 else len(data)


def _last_event_end(data: bytes, start: int, stop: int) -> int:
    """Behind the last empty line in `data[start:stop]`; `start` if there is none."""
    end = start
    for empty in (b"\n\n", b"\n\r\n", b"\r\r"):
        at = data.rfind(empty, start, stop)
        if at >= 0:
            end = max(end, at + len(empty))
    return end


def decode(text: bytes) -> Any:
    """`text` as JSON, None if it is none: an upstream's mistake that is the caller's to see."""
    try:
        return _ANY.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return decode_leniently(text)


def count(value: object) -> int:
    """A token count out of an upstream's JSON, which may write it as `8.0`; 0 for what is none."""
    if type(value) is int:  # as nearly always, and nothing else for each token
        return value if 0 <= value < 1 << 40 else 0
    return int(value) if isinstance(value, float) and 0 <= value < 1 << 40 else 0


def last_object(text: bytes, name: bytes) -> dict[str, Any] | None:
    """The last object in `text` that is the value of the key `name`. Nested objects may be in it,
    strings with braces may not: usage objects have none. Quotes inside JSON strings are escaped, so
    a prompt or an answer can't pretend to be one."""
    key = b'"' + name + b'"'
    at = text.rfind(key)
    looks = 0
    while at >= 0 and looks < MAX_LOOKS:
        start = at + len(key)
        colon = text[start : start + 8].lstrip()
        opening = text.find(b"{", start, start + 8)
        if colon[:1] == b":" and opening >= 0 and text[at - 1 : at] != b"\\":
            looks += 1
            found = decode(text[opening : _closing(text, opening)])
            if isinstance(found, dict):
                return found
        at = text.rfind(key, 0, at)
    return None


def _closing(text: bytes, opening: int) -> int:
    depth, start, stop = 0, opening, opening + MAX_OBJECT_BYTES
    while (end := text.find(b"}", start, stop)) >= 0:
        depth += text.count(b"{", start, end) - 1
        start = end + 1
        if depth == 0:
            return start
    return opening
