"""A long body without its pictures, so that it can be decoded and translated in one go. Pure.

Each picture is cut out behind its first characters, by which its type is known, and a mark that
nobody can guess stands in its place. Where a mark turns up in the translated request, the picture
goes out from where it is held.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence

import msgspec

from .bodies import BodyFacts, Change, Fields, JsonBody, Outgoing, Piece


class CutOut:
    """The marks of one body, whose pictures stand at `places`."""

    def __init__(self, places: Sequence[Piece], start: int, end: int) -> None:
        """`start` and `end`: of the body, in bytes."""
        self._places = tuple(places)
        self._mark = b"wai-" + secrets.token_hex(12).encode()
        parts: list[bytes | Piece] = []
        at = start
        for number, place in enumerate(self._places):
            parts += [Piece(at, place.start), b"%b-%d-" % (self._mark, number)]
            at = place.end
        parts.append(Piece(at, end))
        self.rest = Outgoing(tuple(parts))
        """The body without its pictures."""

    def restored(self, data: bytes) -> Outgoing:
        """`data`, which has marks, with the pictures in their places."""
        found = re.split(re.escape(self._mark) + rb"-(\d+)-", data)
        parts: list[bytes | Piece] = [found[0]]
        for number, text in zip(found[1::2], found[2::2], strict=True):
            parts += [self._places[int(number)], text]
        return Outgoing(tuple(parts))


class CutBody(msgspec.Struct, frozen=True):
    """See `RequestBody`: `rest` has marks where the pictures are."""

    rest: JsonBody
    cut: CutOut

    @property
    def facts(self) -> BodyFacts:
        """See `RequestBody`."""
        return self.rest.facts

    @property
    def fields(self) -> Fields:
        """See `RequestBody`."""
        return self.rest.fields

    @property
    def model_field(self) -> str:
        """See `RequestBody`."""
        return self.rest.model_field

    @property
    def last_role(self) -> str | None:
        """See `RequestBody`."""
        return self.rest.last_role

    def outgoing(self, change: Change) -> Outgoing:
        """See `RequestBody`."""
        return self.cut.restored(self.rest.changed(change))
