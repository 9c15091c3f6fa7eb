"""An answer that outlives its node: the text so far, and how another node is asked to go on.

Only for callers who opted in (`X-WAI-Continue: 1`, or their key), and only for streamed chat
completions that are plain text: the text so far becomes a last assistant message, which
llama-server, vLLM and Ollama continue. It reads the events as they pass, and joins the next node's
events to them, so that the caller sees one stream. Pure; who is asked is `forwarding`'s.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from wai_protocol.status import CONTINUE_FINAL_MESSAGE
from wai_protocol.surface import Route
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.contracts.records import TokenCounts
from wai_relay.http.exchange import Request

from .answer_limits import OUTPUT_LIMIT_FIELDS
from .bodies import Change, RequestBody
from .dialects.dialect import Dialect
from .dialects.usage import count, decode

MAX_TEXT_CHARS: Final = 1024 * 1024
"""Of an answer that is kept: more than any model writes, and what a hostile upstream may cost."""

MAX_CONTINUATIONS: Final = 8
"""Nodes that may die under one answer. More is a fleet that is falling, and not worth the slots."""

# Where one of these is asked for, the rest of an answer can't be had by its text alone.
_UNFIT_FIELDS: Final = (
    *("tools", "functions", "response_format", "json_schema", "grammar", "logprobs"),
    *("audio", "modalities"),
)
# Parts of a delta that are no text that a node could go on from.
_UNFIT_PARTS: Final = ("tool_calls", "function_call", "reasoning_content", "reasoning", "audio")
_NOTHING: Final = (b"null", b"[]", b"false")
# For upstreams with the capability. vLLM opens a new turn unless it is told to go on with the last
# one. llama-server goes on anyway, but (b10434) says the text so far once more. Others may refuse
# such fields.
_GO_ON_FIELDS: Final = {"continue_final_message": b"true", "add_generation_prompt": b"false"}
_EVENT: Final = re.compile(rb"(.*?)\r?\n\r?\n", re.DOTALL)
_DATA: Final = re.compile(rb"^data: ?(.*?)\r?$", re.MULTILINE)
DONE: Final = b"[DONE]"


def continuation_for(
    request: Request, dialect: Dialect, route: Route, key: ApiKey, body: RequestBody | None
) -> Continuation | None:
    """A continuation for an answer that may be continued, if its caller wants that."""
    asked = request.header(b"x-wai-continue")
    if asked == b"0" or not (asked == b"1" or key.limits.continue_):
        return None
    if body is None or not dialect.continues(route) or not body.facts.stream:
        return None
    given = body.fields
    if any(bytes(given.get(name, b"null")) not in _NOTHING for name in _UNFIT_FIELDS):
        return None
    if bytes(given.get("n", b"1")) not in (b"1", b"null"):
        return None
    if body.last_role in (None, "assistant"):  # how much of that is said again differs too much
        return None
    return Continuation(body)


class Continuation:
    """One answer's text so far. Feed it what the caller is sent, by `take`."""

    def __init__(self, body: RequestBody) -> None:
        self.count = 0
        """How many times another node took the answer on."""
        self._body = body
        self._text: list[str] = []
        self._chars = 0
        self._pieces = 0  # of text; a piece is a token, or a little more
        self._before = 0  # of them, those that came from nodes before this one
        self._finished = False
        self._unfit = False
        self._frame: dict[str, Any] = {}  # what all chunks of the stream have in common

    # -- what passes

    def take(self, events: bytes) -> bytes:
        """Whole events on their way to the caller; gives what to send of them."""
        if not events.endswith((b"\n\n", b"\r\n\r\n")):
            self._unfit = True  # a piece of an event that is too long to be held
            return events
        if not self.count:
            for event in _EVENT.finditer(events):
                for data in _DATA.findall(event[1]):
                    self._observe(decode(data))
            return events
        return b"".join(self._joined(event[0], event[1]) for event in _EVENT.finditer(events))

    def _observe(self, chunk: object) -> None:
        """Keep what a chunk says."""
        if not isinstance(chunk, dict):
            return
        if not self._frame:
            self._frame = {k: chunk[k] for k in ("id", "created", "model") if k in chunk}
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices:
            return
        choice = choices[0]
        if len(choices) > 1 or not isinstance(choice, dict) or choice.get("index"):
            self._unfit = True
            return
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self._unfit = self._unfit or any(delta.get(name) for name in _UNFIT_PARTS)
            if isinstance(text := delta.get("content"), str) and text:
                self._keep(text)
        self._finished = self._finished or bool(choice.get("finish_reason"))

    def _keep(self, text: str) -> None:
        self._pieces += 1
        self._chars += len(text)
        if self._chars > MAX_TEXT_CHARS:
            self._unfit = True
        if self._unfit:
            self._text.clear()
        else:
            self._text.append(text)

    def _joined(self, event: bytes, lines: bytes) -> bytes:
        """An event of a later node, made to look like one of the first; b"" to leave it out."""
        data = _DATA.findall(lines)
        chunk = decode(data[0]) if len(data) == 1 else None
        if not isinstance(chunk, dict) or "error" in chunk:
            return event
        choices, usage = chunk.get("choices"), chunk.get("usage")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            delta = choices[0].get("delta")
            if isinstance(delta, dict):
                self._drop_echo(delta)
                if delta.pop("role", None) and not any(delta.values()):
                    return b""  # there was one already
        self._observe(chunk)
        chunk.update(self._frame)
        if isinstance(usage, dict):  # what was said before is part of the answer, not of the prompt
            said = min(self._before, count(usage.get("prompt_tokens")))
            usage["prompt_tokens"] = count(usage.get("prompt_tokens")) - said
            usage["completion_tokens"] = count(usage.get("completion_tokens")) + said
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def _drop_echo(self, delta: dict[str, Any]) -> None:
        """Some servers say the text so far once more, in front of their first piece. A piece is one
        token, so one that begins with all of several tokens is no accident."""
        text = delta.get("content")
        if self._pieces != self._before or self._before < 2 or not isinstance(text, str):
            return
        said = "".join(self._text)
        if text.startswith(said):
            delta["content"] = text[len(said) :]

    # -- when the node is lost

    @property
    def possible(self) -> bool:
        """Whether another node can go on."""
        return not self._unfit and self.count < MAX_CONTINUATIONS

    def go_on(self) -> None:
        """What comes from now on comes from another node."""
        self.count += 1
        self._before = self._pieces

    def whole(self, counts: TokenCounts) -> TokenCounts:
        """The tokens of the whole answer, where `counts` are those of the last node's part."""
        prompt = counts.prompt - min(self._before, counts.prompt) if counts.exact else counts.prompt
        completion = counts.completion + self._before
        return TokenCounts(prompt, min(counts.cached, prompt), completion, exact=counts.exact)

    def ending(self) -> bytes:
        """The events that complete an answer of which nothing but its end is missing, else b""."""
        if self._unfit:
            return b""
        if self._finished:
            return b"data: " + DONE + b"\n\n"
        limit = self._body.facts.max_output_tokens
        if limit is None or self._pieces < limit:
            return b""
        last = {"index": 0, "delta": {}, "finish_reason": "length"}
        chunk = {**self._frame, "object": "chat.completion.chunk", "choices": [last]}
        return b"data: " + msgspec.json.encode(chunk) + b"\n\ndata: " + DONE + b"\n\n"

    def changed(self, change: Change, capabilities: Collection[str]) -> Change:
        """`change`, by which the request goes to an upstream with these `capabilities`, so that it
        goes on from the text so far."""
        if not self._text:
            return change
        fields: dict[str, bytes] = {}
        for name in OUTPUT_LIMIT_FIELDS:
            limit = decode(bytes(self._body.fields.get(name, b"null")))
            if isinstance(limit, int | float) and limit > 0:
                fields[name] = b"%d" % max(limit - self._pieces, 1)
        if CONTINUE_FINAL_MESSAGE in capabilities:
            fields |= _GO_ON_FIELDS
        said = msgspec.json.encode({"role": "assistant", "content": "".join(self._text)})
        return replace(change, fields={**change.fields, **fields}, message=said)
