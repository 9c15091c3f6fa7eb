"""Batches: the requests that are stored in one transaction, or kept as one line of a spill file.

A batch has an id, which its transaction stores as well. So a batch of which it is not known whether
it was stored can be written again, and is counted only once. Where relays share a database, the ids
of a relay's batches begin with its mark, so that each relay forgets its own ids only.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import msgspec

from wai_protocol.errors import StoreError
from wai_protocol.foreign_json import ForeignJsonError, read_json
from wai_relay.contracts.records import RequestRecord, TokenCounts
from wai_relay.storage import Write

from .rollups import correction, writes_for

ID_BYTES: Final = 8  # 64 random bits: about ten thousand ids are kept at a time
_ADD_ID: Final = "INSERT INTO usage_batches (id) VALUES ($1)"
# The fields of a line. `tried` is left out, because it only explains the choice of a node, and the
# caller's address, because it is not stored.
_KEPT_FIELDS: Final = tuple(
    name for name in RequestRecord.__struct_fields__ if name not in ("tried", "tokens", "address")
)


class Counted(NamedTuple):
    """A finished request, or the correction of one that is stored already.

    `model`: the model under which it is counted. `tokens`: its tokens when it was added to the
    batch. `before`: for a correction, the tokens that are stored now.
    """

    record: RequestRecord
    model: str
    tokens: TokenCounts
    before: TokenCounts | None = None

    @property
    def added_tokens(self) -> int:
        """How many tokens it adds to the sum of its key."""
        return self.tokens.total - (self.before.total if self.before is not None else 0)


class Batch:
    """Some requests and corrections, with the transaction that stores them."""

    __slots__ = ("counted", "id", "requests", "writes")

    def __init__(self, counted: list[Counted], batch_id: str | None = None) -> None:
        """Build the transaction from `counted`, in which a correction must follow its request.

        `batch_id`: by default a new random one.
        """
        self.id = batch_id or new_id()
        self.counted = counted
        self.requests = sum(each.before is None for each in counted)
        new = [(each.record, each.model) for each in counted if each.before is None]
        self.writes: list[Write] = [Write(_ADD_ID, (self.id,)), *(writes_for(new) if new else ())]
        for each in counted:
            if each.before is not None:
                self.writes += correction(each.record, each.model, each.before, each.tokens)

    def line(self) -> bytes:
        """Return the batch as one line of JSON, for `read_batch`."""
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
    """Read a batch from the line that `Batch.line` returned. Raises `StoreError`."""
    try:
        kept = read_json(line, _Line, "a line of unwritten usage")
        return Batch([_counted(each) for each in kept.counted], kept.id)
    except (ForeignJsonError, TypeError) as error:
        raise StoreError(f"a line of unwritten usage is broken: {error}") from error


def new_id(writer: str = "") -> str:
    """Return an id for a batch, which begins with its `writer`."""
    return writer + secrets.token_hex(ID_BYTES)


def batches_of(counted: Iterable[Counted], size: int, writer: str = "") -> Iterator[Batch]:
    """Split `counted` into batches of at most `size` requests, whose ids begin with `writer`."""
    rest = list(counted)
    for start in range(0, len(rest), size):
        yield Batch(rest[start : start + size], new_id(writer))


def _kept(each: Counted) -> _Kept:
    values = {name: getattr(each.record, name) for name in _KEPT_FIELDS}
    return _Kept(each.model, values, each.tokens, each.before)


def _counted(kept: _Kept) -> Counted:
    """Convert from the line's form. Unknown fields, written by a newer version, are ignored."""
    values = {name: value for name, value in kept.fields.items() if name in _KEPT_FIELDS}
    record = RequestRecord(**values, tokens=kept.tokens)
    return Counted(record, kept.model, kept.tokens, kept.before)
