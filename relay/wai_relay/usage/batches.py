"""Requests that are written in one transaction, and the line that keeps them outside the database.

A batch has an id of its own, which its transaction stores with it: so it may be written again when
nobody knows whether it was written, and counts once.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any, Final, NamedTuple

import msgspec

from wai_protocol.errors import StoreError
from wai_protocol.foreign_json import ForeignJsonError, read_json
from wai_relay.contracts.records import RequestRecord, TokenCounts
from wai_relay.storage import Write

from .rollups import correction, writes_for

ID_BYTES: Final = 8  # 64 random bits: some ten thousand ids are kept at a time
_ADD_ID: Final = "INSERT INTO usage_batches (id) VALUES ($1)"
# Not kept in a line: `tried` explains a choice and costs nothing.
_KEPT_FIELDS: Final = tuple(
    field.name for field in fields(RequestRecord) if field.name not in ("tried", "tokens")
)


class Counted(NamedTuple):
    """A request that is over, the model that it is counted under, and what it took when it was put
    into its batch. `before`: it is stored already, with these tokens, and is to be corrected."""

    record: RequestRecord
    model: str
    tokens: TokenCounts
    before: TokenCounts | None = None

    @property
    def more(self) -> int:
        """The tokens that it adds to its key's sum."""
        return self.tokens.total - (self.before.total if self.before is not None else 0)


class Batch:
    """Some requests and corrections with their transaction."""

    __slots__ = ("counted", "id", "requests", "writes")

    def __init__(self, counted: list[Counted], batch_id: str | None = None) -> None:
        """`counted` must be as it is now; a correction comes after its request."""
        self.id = batch_id or secrets.token_hex(ID_BYTES)
        self.counted = counted
        self.requests = sum(each.before is None for each in counted)
        new = [(each.record, each.model) for each in counted if each.before is None]
        self.writes: list[Write] = [Write(_ADD_ID, (self.id,)), *(writes_for(new) if new else ())]
        for each in counted:
            if each.before is not None:
                self.writes += correction(each.record, each.model, each.before, each.tokens)

    def line(self) -> bytes:
        """All of it as one line of JSON, for `read_batch`."""
        return msgspec.json.encode(_Line(self.id, [_kept(each) for each in self.counted])) + b"\n"


class _Kept(msgspec.Struct):
    model: str
    fields: dict[str, Any]
    tokens: TokenCounts
    before: TokenCounts | None = None


class _Line(msgspec.Struct):
    id: str
    counted: list[_Kept]


def read_batch(line: bytes) -> Batch:
    """The batch that `line` keeps. Raises `StoreError` if it keeps none."""
    try:
        kept = read_json(line, _Line, "a line of unwritten usage")
        return Batch([_counted(each) for each in kept.counted], kept.id)
    except (ForeignJsonError, TypeError) as error:
        raise StoreError(f"a line of unwritten usage is broken: {error}") from error


def batches_of(counted: Iterable[Counted], size: int) -> Iterator[Batch]:
    """`counted` in batches of at most `size`."""
    rest = list(counted)
    for start in range(0, len(rest), size):
        yield Batch(rest[start : start + size])


def _kept(each: Counted) -> _Kept:
    values = {name: getattr(each.record, name) for name in _KEPT_FIELDS}
    return _Kept(each.model, values, each.tokens, each.before)


def _counted(kept: _Kept) -> Counted:
    """What a newer version wrote beside the fields that we know is left out."""
    values = {name: value for name, value in kept.fields.items() if name in _KEPT_FIELDS}
    record = RequestRecord(**values, tokens=kept.tokens)
    return Counted(record, kept.model, kept.tokens, kept.before)
