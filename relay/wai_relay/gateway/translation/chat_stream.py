"""A stream of OpenAI's chat completions, read event by event and written in another dialect. Pure.

An upstream's bytes go in, the caller's bytes come out. The base class decides which part of an
answer is open (reasoning, text or a tool call) and in which order parts are written; a subclass
writes them in its dialect. Nothing that an upstream sends raises: what cannot be read is skipped.
"""

from __future__ import annotations

import abc
import enum
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from wai_protocol.errors import Fault
from wai_relay.gateway.dialects.dialect import REPORTED, Dialect, error_in, sentence_in
from wai_relay.gateway.dialects.usage import count, decode

MAX_EVENT_BYTES: Final = 4 * 1024 * 1024
"""Of one event that is held until it is whole. Tool calls that come in one event are shorter."""

MAX_CALLS: Final = 512
"""Tool calls in one answer; a hostile upstream could open one with every event."""

MAX_HELD_CHARS: Final = 8 * 1024 * 1024
"""Of an answer's later tool calls, which are held until the first is complete."""

ENCODER: Final = msgspec.json.Encoder()
_EVENT_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_REASONING_FIELDS: Final = ("reasoning_content", "reasoning", "thinking")


class Part(enum.Enum):
    """What an answer consists of."""

    REASONING = enum.auto()
    TEXT = enum.auto()
    CALL = enum.auto()


class Call(msgspec.Struct):
    """One tool call. `arguments` are the pieces of its JSON that were not written yet."""

    index: int
    id: str = ""
    name: str = ""
    arguments: list[str] = msgspec.field(default_factory=list)


class Usage(msgspec.Struct):
    """The tokens of an answer. `told`: by the upstream; else `completion` counts the pieces."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    told: bool = False


def usage_of(document: dict[str, Any]) -> Usage | None:
    """The usage in a chunk or a whole chat completion, None if it tells none: some have zeros."""
    usage = document.get("usage")
    if not isinstance(usage, dict) or not usage:
        return None
    details = usage.get("prompt_tokens_details")
    prompt = count(usage.get("prompt_tokens"))
    cached = count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    completion = count(usage.get("completion_tokens"))
    if not prompt and not completion:
        return None
    return Usage(prompt, min(cached, prompt), completion, told=True)


def said_in(content: object) -> Iterator[tuple[Part, str]]:
    """What a message's content says: a text, or as Mistral has it a list of thoughts and texts."""
    if isinstance(content, str):
        if content:
            yield Part.TEXT, content
        return
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict):
            continue
        if isinstance(text := part.get("text"), str) and text:
            yield Part.TEXT, text
        thinking = part.get("thinking")
        for thought in thinking if isinstance(thinking, list) else [thinking]:
            text = thought.get("text") if isinstance(thought, dict) else thought
            if isinstance(text, str) and text:
                yield Part.REASONING, text


def calls_in(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The tool calls of a message or a piece of one. Older servers know one call only, in a field
    of its own; llama-cpp-python says it in both."""
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        return [call for call in calls if isinstance(call, dict)]
    function = message.get("function_call")
    return [{"index": 0, "function": function}] if isinstance(function, dict) else []


class ChatStream(abc.ABC):
    """Writes one streamed answer in the caller's dialect. `feed` and `finish` give bytes to send.

    The first tool call is passed on as it comes. What follows it is held until the answer's end,
    for an upstream may send pieces of several calls in turn, and no other dialect can.
    """

    passes_comments = True
    """Whether the caller's stream is one of events, in which comments may stand."""

    def __init__(self, dialect: Dialect) -> None:
        self.usage = Usage()
        self.finish_reason = ""
        self.timings: dict[str, Any] = {}
        self._dialect = dialect
        self._held = b""
        self._search_from = 0
        self._out: list[bytes] = []
        self._part: Part | None = None
        self._calls: list[Call] = []
        self._by_index: dict[int, Call] = {}
        self._current: Call | None = None
        self._later_text: list[str] = []
        self._held_chars = 0
        self._begun = False
        self._over = False

    def feed(self, data: bytes) -> bytes:
        """Take the upstream's bytes, in any pieces."""
        self._held += data
        if not self._begun:
            self._held = self._held.removeprefix(BOM_UTF8)
        start = 0
        while found := _EVENT_END.search(self._held, self._search_from):
            self._event(self._held[start : found.start()])
            start = self._search_from = found.end()
        self._held = self._held[start:]
        self._search_from = max(len(self._held) - 3, 0)
        if len(self._held) > MAX_EVENT_BYTES:
            self._fail("The upstream sent an event that is too long to be translated.")
        return self._taken()

    def finish(self) -> bytes:
        """The upstream's stream ended cleanly: the rest of the caller's."""
        held, self._held = self._held, b""
        if held.strip():
            self._event(held)
        self._complete()
        return self._taken()

    def whole(self, document: dict[str, Any]) -> bytes:
        """The upstream sent no stream but a whole completion: the caller's stream of it."""
        self._chunk(document)
        self._complete()
        return self._taken()

    # -- what a dialect writes, by `_send`

    @abc.abstractmethod
    def _begin(self) -> None:
        """The answer begins."""

    @abc.abstractmethod
    def _open(self, part: Part, call: Call | None) -> None:
        """A part begins; `call` is given for a tool call."""

    @abc.abstractmethod
    def _piece(self, part: Part, text: str) -> None:
        """A piece of the open part."""

    @abc.abstractmethod
    def _close(self, part: Part, call: Call | None) -> None:
        """The open part is complete."""

    @abc.abstractmethod
    def _end(self) -> None:
        """The answer is complete: `finish_reason` and `usage` are known."""

    def _send(self, data: bytes) -> None:
        self._out.append(data)

    @property
    def called(self) -> bool:
        """Whether the answer has a tool call."""
        return bool(self._calls)

    # -- inside

    def _taken(self) -> bytes:
        if not self._out:
            return b""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def _event(self, event: bytes) -> None:
        name = b""
        if event.startswith(b"data:") and b"\n" not in event and b"\r" not in event:
            data = event[5:]
        else:
            lines = _LINE_END.split(event)
            data = b"\n".join(line[5:] for line in lines if line.startswith(b"data:"))
            name = next((line[6:].strip() for line in lines if line.startswith(b"event:")), b"")
            if not data:
                if self.passes_comments and event.startswith(b":"):
                    self._send(event + b"\n\n")
                return
        if data.strip() == b"[DONE]":
            self._complete()
            return
        chunk = decode(data)
        if name == b"error" and not self._over:
            self._fail(sentence_in(chunk) or REPORTED)
        elif isinstance(chunk, dict):
            self._chunk(chunk)

    def _chunk(self, chunk: dict[str, Any]) -> None:
        if self._over:
            return
        if (message := error_in(chunk)) is not None:
            self._fail(message or REPORTED)
            return
        self._begin_once()
        if (usage := usage_of(chunk)) is not None:
            self.usage = usage
        if isinstance(timings := chunk.get("timings"), dict):
            self.timings = timings
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict) or choice.get("index") not in (0, None):
                continue
            delta = choice.get("delta") or choice.get("message")
            if isinstance(delta, dict):
                self._delta(delta)
            reason = choice.get("finish_reason")
            if isinstance(reason, str) and reason and not self.finish_reason:
                self.finish_reason = reason

    def _delta(self, delta: dict[str, Any]) -> None:
        for name in _REASONING_FIELDS:
            if isinstance(text := delta.get(name), str) and text:
                self._say(Part.REASONING, text)
                break
        for part, text in said_in(delta.get("content") or delta.get("refusal")):
            self._say(part, text)
        for call in calls_in(delta):
            self._call(call, call.get("index"))

    def _say(self, part: Part, text: str) -> None:
        self._count()
        if self._calls:
            if part is Part.TEXT and self._may_hold(text):
                self._later_text.append(text)
            return
        if self._part is not part:
            self._close_part()
            self._open_part(part, None)
        self._piece(part, text)

    def _call(self, told: dict[str, Any], index: object) -> None:
        self._count()
        function = told.get("function")
        function = function if isinstance(function, dict) else {}
        name, arguments, call_id = function.get("name"), function.get("arguments"), told.get("id")
        name = name if isinstance(name, str) else ""
        call_id = call_id if isinstance(call_id, str) else ""
        call = self._call_of(index, call_id, name)
        if call is None:
            return
        call.id = call.id or call_id
        call.name = call.name or name
        if isinstance(arguments, dict):  # some servers send the object itself
            arguments = encode_text(arguments)
        if self._current is None and call.name and len(self._calls) == 1:
            self._close_part()
            self._current = call
            self._open_part(Part.CALL, call)
            if call.arguments:
                self._piece(Part.CALL, "".join(call.arguments))
        if isinstance(arguments, str) and arguments:
            if call is self._current:
                self._piece(Part.CALL, arguments)
            elif self._may_hold(arguments):
                call.arguments.append(arguments)

    def _call_of(self, index: object, call_id: str, name: str) -> Call | None:
        """The call that a piece belongs to, a new one where it begins one. None: there are too
        many. Some servers leave the index out, and some say 0 of all: an id that is new, and there
        a name with it, opens a call."""
        if type(index) is int:
            call = self._by_index.get(index)
            fresh = call is None or (name and call_id and call.id not in ("", call_id))
        else:
            known = [call for call in self._calls if call_id and call.id == call_id]
            call = known[0] if known else self._calls[-1] if self._calls else None
            fresh = call is None or (call_id and not known)
        if fresh:
            if len(self._calls) >= MAX_CALLS:
                return None
            call = Call(len(self._calls))
            self._calls.append(call)
        if type(index) is int and call is not None:
            self._by_index[index] = call
        return call

    def _may_hold(self, text: str) -> bool:
        self._held_chars += len(text)
        return self._held_chars <= MAX_HELD_CHARS

    def _count(self) -> None:
        if not self.usage.told:
            self.usage.completion += 1

    def _begin_once(self) -> None:
        if not self._begun:
            self._begun = True
            self._begin()

    def _open_part(self, part: Part, call: Call | None) -> None:
        self._part = part
        self._open(part, call)

    def _close_part(self) -> None:
        if self._part is not None:
            part, self._part = self._part, None
            self._close(part, self._current)

    def _complete(self) -> None:
        if self._over:
            return
        self._over = True
        self._begin_once()
        self._close_part()
        for call in self._calls:
            if call is not self._current and call.name:
                self._current = call
                self._open_part(Part.CALL, call)
                if call.arguments:
                    self._piece(Part.CALL, "".join(call.arguments))
                self._close_part()
        if self._later_text:
            self._open_part(Part.TEXT, None)
            self._piece(Part.TEXT, "".join(self._later_text))
            self._close_part()
        self._end()

    def _fail(self, message: str) -> None:
        if not self._over:
            self._over = True
            self._send(self._dialect.error_event(Fault.UPSTREAM_BROKE, message))
        self._held = b""


def encode_text(value: object) -> str:
    """`value` as JSON text."""
    return ENCODER.encode(value).decode()
