"""A JSON body too long to be read in one go: what it asks for, and how it goes out. Pure.

It was read by a `JsonScanner` and is held elsewhere (`held_body`); here are only its short fields
and the places of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from wai_protocol.errors import RequestError
from wai_protocol.surface import Route

from .answer_limits import MAX_ANSWERS
from .bodies import (
    BodyFacts,
    Change,
    Fields,
    Outgoing,
    Piece,
    changes_in,
    has_prompt,
    model_of,
    read_facts,
)
from .dialects.dialect import Dialect
from .json_scan import JsonScanner, Span
from .prompt_size import NO_PROMPT

_ENCODER: Final = msgspec.json.Encoder()


class LongBody(msgspec.Struct, frozen=True):
    """See `RequestBody`. `spans` are the places of all fields in the body, `start` its own (behind
    a byte order mark), `opening` the one behind its first brace,
    `blobs` those of pictures."""

    facts: BodyFacts
    fields: Fields
    model_field: str
    last_role: str | None
    spans: dict[str, Span]
    start: int
    opening: int
    size: int
    blobs: tuple[Piece, ...]

    def outgoing(self, change: Change) -> Outgoing:
        """See `RequestBody`. New fields are put before the others."""
        changes = changes_in(self, change)
        added = b"".join(
            _ENCODER.encode(name) + b":" + value + b","
            for name, value in changes.items()
            if name not in self.spans
        )
        edits = [(Span(self.opening, self.opening), added)] if added else []
        edits += [(self.spans[name], changes[name]) for name in changes if name in self.spans]
        if change.message:
            end = self.spans["messages"].end - 1
            edits.append((Span(end, end), b"," + change.message))
        parts: list[bytes | Piece] = []
        at = self.start
        for span, said in sorted(edits):
            if span.start > at:
                parts.append(Piece(at, span.start))
            parts.append(said)
            at = span.end
        parts.append(Piece(at, self.size))
        return Outgoing(tuple(parts))


def read_long(
    scanner: JsonScanner,
    size: int,
    dialect: Dialect,
    route: Route,
    default_model: Callable[[], str | None] = lambda: None,
) -> LongBody:
    """What a body of `size` bytes says that `scanner` has seen to its end. `default_model`: see
    `bodies.read_json`. Raises `RequestError` with a sentence for the caller."""
    scanner.finish()
    fields = scanner.fields
    model_field, model = model_of(fields, dialect, route, default_model)
    if has_prompt(route) and "messages" in dialect.prompt_fields:
        messages = fields.get("messages")
        if messages is not None and bytes(messages)[:1] != b"[":
            raise RequestError("`messages` must be a list.")
    prompt = scanner.parts.size() if has_prompt(route) else NO_PROMPT
    prefix = scanner.parts.prefix() if has_prompt(route) else ()
    counted: Fields = fields
    if count := scanner.parts.items.get("prompt"):  # a list of prompts was cut: say how many
        stand_in = b"[" + b",".join([b'""'] * min(count, MAX_ANSWERS)) + b"]"
        counted = {**fields, "prompt": msgspec.Raw(stand_in)}
    facts = read_facts(counted, dialect, route, model, prompt, prefix, size)
    return LongBody(
        *(facts, fields, model_field, scanner.last_role, scanner.spans),
        *(scanner.start, scanner.opening, size, tuple(scanner.blobs)),
    )
