"""Reads a long JSON body as it streams past, without holding it. Pure.

It finds what `bodies` reads of a short one: the fields of the top level, where their values stand
(so that they can be changed on the way out), and how long the prompt is. Pieces may be cut
anywhere. Below the top level it counts brackets and skips strings, and judges nothing more: the
upstream reads the rest.

`feed` does a bounded piece of work and says how far it came, so that other callers have their turn.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8, getincrementaldecoder
from typing import Final, NamedTuple

import msgspec

from wai_protocol.errors import RequestError

from .blobs import LEAST_BLOB_CHARS, MAX_BEFORE_BYTES, BlobWatch
from .bodies import MAX_FIELDS, Piece
from .dialects.dialect import Dialect
from .json_string import DEAR_WORK, find_end
from .prompt_parts import PartsMeter

MAX_DEPTH: Final = 512  # deeper JSON is an attack on somebody's parser
# Brackets, strings and pairs: each costs 0.3 µs here, so this bounds what a hostile body costs.
MAX_TOKENS: Final = 2_000_000
TURN_WORK: Final = 5_000  # tokens in one turn of the event loop: 2 to 3 ms
_BYTES_PER_WORK: Final = 64  # that are only looked at
_ITEM_WORK: Final = 16  # more, for a message
_FIELD_WORK: Final = 24  # for a field of the top level
_BLOB_WORK: Final = 200  # for a picture
MAX_KEY_BYTES: Final = 1536  # of a field's name that may matter, with every character escaped
MAX_KEPT_BYTES: Final = 64 * 1024  # of one value; what is longer is kept up to here, and one more
MAX_KEPT_TOGETHER_BYTES: Final = 1024 * 1024
FEW_KEPT_BYTES: Final = 128  # of one value after that: any number or flag
_TOP: Final = re.compile(rb'["{}\[\],:]')
_DEEP: Final = re.compile(rb'["{}\[\]]')
_SPACE: Final = b" \t\r\n"
MAX_BLOBS: Final = 4096  # whose places are kept
_ROLE: Final = b"role"
_MAX_ROLE_BYTES: Final = 32


class Span(NamedTuple):
    """Where a value stands in the body, in bytes."""

    start: int
    end: int


class JsonScanner:
    """See the module. After the last `feed` call `finish`; then the results are complete.

    `fields` has the top level's values as they stand in the body; those that are longer than
    `MAX_KEPT_BYTES` are cut, and those of the prompt to `FEW_KEPT_BYTES`. `start` is the body's
    place, behind a byte order mark, and `opening` the one behind the first brace.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.fields: dict[str, msgspec.Raw] = {}
        self.spans: dict[str, Span] = {}
        self.start = self.opening = 0
        self.last_role: str | None = None
        """The role of the last message, None where it is no object with one."""
        self.parts = PartsMeter(dialect.prompt_fields)
        self.blobs: list[Piece] = []
        """Where the prompt's pictures and recordings stand, the first of them, each behind the
        characters that tell its type."""
        self._prompt_fields = frozenset(dialect.prompt_fields)
        self._size = 0
        self._depth = 0
        self._tokens = 0
        self.work = 0
        """What was done in this turn of the event loop; who lets others have theirs sets it to 0
        when it is `TURN_WORK` or more."""
        self._utf8 = getincrementaldecoder("utf-8")()
        self._in_utf8 = False  # a character is cut in two
        self._ended = False
        # The top level
        self._key: str | None = None  # the pair's that is being read
        self._wants_colon = self._wants_value = self._wants_comma = False
        self._after_comma = False
        self._value_start = 0
        self._kept: bytearray | None = None  # the value, as far as it is kept
        self._keep_bytes = 0
        self._kept_together = 0
        self._kept_from = 0  # in the current piece
        # A string
        self._in_string = False
        self._escaped = False  # the last piece ended behind an odd number of backslashes
        self._string_start = 0
        self._string_from = 0  # in the current piece
        self._name: bytearray | None = None  # a key of the top level
        self._blob = BlobWatch()
        self._short = b""  # the last short string below the top level, which may be a key
        self._tail = b""  # the last bytes of the piece before
        # The prompt
        self._prompt = False
        self._prompt_from = 0  # in the current piece

    # -- in

    def feed(self, data: bytes, start: int = 0) -> int:
        """Take the next piece, `data` from `start` on, as far as `work` allows. Returns how far it
        came: call it again with that if it is not the end. Raises `RequestError`."""
        if start == 0:
            self._begin_piece(data)
        base = self._size
        pos, stop = start, len(data)
        while pos < stop:
            if self._in_string:
                pos = self._string(data, pos, base)
            elif self._depth == 0:
                pos = self._outside(data, pos, base)
            else:
                token = (_TOP if self._depth == 1 else _DEEP).search(data, pos)
                if token is None:
                    break
                pos = token.end()
                self._tokens += 1
                self.work += 1
                if self._depth == 1:
                    self._top_token(token[0], data, pos - 1, base)
                else:
                    self._deep_token(token[0], data, pos - 1, base)
            if self.work >= TURN_WORK and pos < stop:
                if self._tokens > MAX_TOKENS:
                    raise RequestError("The request body has too many values.")
                return pos
        self._end_piece(data)
        return stop

    def finish(self) -> None:
        """The body is over. Raises `RequestError` if it is not whole."""
        if not self._ended or self._in_utf8:
            raise _invalid("it ends in the middle")

    def _begin_piece(self, data: bytes) -> None:
        if self._in_utf8 or not data.isascii():
            try:
                self._utf8.decode(data)
            except UnicodeDecodeError as error:
                place = self._size + error.start
                raise RequestError(
                    f"The request body is not UTF-8 (about byte {place} breaks it)."
                ) from None
            self._in_utf8 = bool(self._utf8.getstate()[0])
        self._kept_from = self._string_from = self._prompt_from = 0

    def _end_piece(self, data: bytes) -> None:
        stop = len(data)
        if self._kept is not None:
            self._keep(data, stop)
        inside = self._string_start < self._size and self._in_string and self._may_hold_blob
        if self._in_string and self._may_hold_blob:
            self._watch_string(data, stop, self._size)
        if self._prompt:
            self.parts.take(data, self._prompt_from, stop, blob=inside and self._blob.likely)
        self.work += stop // _BYTES_PER_WORK
        self._tail = (self._tail + data[-MAX_BEFORE_BYTES:])[-MAX_BEFORE_BYTES:]
        self._size += stop

    def _outside(self, data: bytes, pos: int, base: int) -> int:
        """Before the object, or behind it. Returns the position behind what was taken."""
        stop = len(data)
        rest = data[pos : pos + 64].lstrip(_SPACE)
        if not rest:
            return min(pos + 64, stop)
        pos = min(pos + 64, stop) - len(rest)
        if self._ended:
            raise _invalid("something follows its end")
        at = base + pos
        if at == self.start and at < len(BOM_UTF8) and data[pos] == BOM_UTF8[at]:
            self.start = at + 1
            return pos + 1
        if data[pos] != ord("{"):
            raise RequestError("The request body must be a JSON object.")
        self._depth = 1
        self.opening = base + pos + 1
        return pos + 1

    # -- the top level

    def _top_token(self, token: bytes, data: bytes, at: int, base: int) -> None:
        match token:
            case b'"':
                self._in_string, self._escaped = True, False
                self._string_start, self._string_from = base + at, at + 1
                if self._wants_value:
                    self._begin_value(data, at, base)
                elif self._wants_colon or self._wants_comma:
                    raise _invalid("two values stand side by side")
                else:
                    self._name = bytearray()
            case b":":
                if not self._wants_colon:
                    raise _invalid("a colon stands where none may be")
                self._wants_colon, self._wants_value = False, True
                self._value_start = base + at + 1
                self._kept, self._kept_from = bytearray(), at + 1
            case b"{" | b"[":
                if not self._wants_value:
                    raise _invalid("a bracket stands where none may be")
                self._begin_value(data, at, base)
                self._depth = 2
                if self._prompt:
                    self.parts.opened(token)
            case b"," | b"}":
                if self._wants_value:
                    self._end_scalar(data, at)
                elif self._wants_colon:
                    raise _invalid("a value is missing")
                elif not self._wants_comma and (token == b"," or self._after_comma):
                    raise _invalid("a pair is missing")
                self._wants_comma = False
                self._after_comma = token == b","
                if token == b"}":
                    self._depth, self._ended = 0, True
            case _:
                raise _invalid("a bracket too many")

    def _take_key(self, name: bytes) -> None:
        self.work += _FIELD_WORK
        if len(self.spans) >= MAX_FIELDS:
            raise RequestError("The request body has too many fields.")
        try:
            key = msgspec.json.decode(b'"' + name + b'"', type=str)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise _invalid("a field's name is broken") from None
        if key in self.spans:
            raise RequestError(f"The request names `{key[:64]}` twice.")
        self._key = key
        self._wants_colon = True
        self._after_comma = False
        together = self._kept_together < MAX_KEPT_TOGETHER_BYTES
        self._keep_bytes = MAX_KEPT_BYTES + 1 if together else FEW_KEPT_BYTES

    def _begin_value(self, data: bytes, at: int, base: int) -> None:
        """A string, an object or a list begins, where a value was due."""
        self._keep(data, at)
        if self._kept and self._kept.strip(_SPACE):
            raise _invalid("two values stand side by side")
        self._wants_value = False
        self._value_start = base + at
        if self._key in self._prompt_fields:
            self._prompt, self._prompt_from = True, at
            self.parts.begin(self._key)
            self._keep_bytes = FEW_KEPT_BYTES  # enough to see whether there is anything
        self._kept, self._kept_from = bytearray(), at

    def _end_value(self, data: bytes, end: int, base: int) -> None:
        """The value ends before `data[end]`."""
        self._keep(data, end)
        assert self._key is not None
        assert self._kept is not None
        self.spans[self._key] = Span(self._value_start, base + end)
        if self._prompt:
            self.parts.take(data, self._prompt_from, end)
            self.parts.end()
            self._prompt = False
        self.fields[self._key] = msgspec.Raw(bytes(self._kept))
        self._kept_together += len(self._kept)
        self._kept = None
        self._wants_comma = True

    def _end_scalar(self, data: bytes, end: int) -> None:
        """A number, a flag or null ends before `data[end]`, perhaps with white space."""
        self._keep(data, end)
        assert self._key is not None
        assert self._kept is not None
        kept = bytes(self._kept)
        value = kept.strip(_SPACE)
        if not value:
            raise _invalid("a value is missing")
        start = self._value_start + len(kept) - len(kept.lstrip(_SPACE))
        self.spans[self._key] = Span(start, start + len(value))
        self.fields[self._key] = msgspec.Raw(value)
        self._kept_together += len(value)
        self._kept = None
        self._wants_value = False

    def _keep(self, data: bytes, stop: int) -> None:
        if self._kept is not None:
            room = self._keep_bytes - len(self._kept)
            if room > 0:
                self._kept += data[self._kept_from : min(stop, self._kept_from + room)]
            self._kept_from = stop

    # -- below it

    def _deep_token(self, token: bytes, data: bytes, at: int, base: int) -> None:
        depth = self._depth
        match token:
            case b'"':
                self._in_string, self._escaped = True, False
                self._string_start, self._string_from = base + at, at + 1
                if depth == 2 and self._prompt:
                    self._begin_item(data, at)
            case b"{" | b"[":
                if depth == 2 and self._prompt:
                    self._begin_item(data, at)
                self._depth = depth + 1
                if depth >= MAX_DEPTH:
                    raise RequestError(f"The request body is nested deeper than {MAX_DEPTH}.")
            case _:
                self._depth = depth - 1
                if depth == 3 and self._prompt:
                    self._end_item(data, at + 1)
                elif depth == 2:
                    self._end_value(data, at + 1, base)

    def _begin_item(self, data: bytes, at: int) -> None:
        if self.parts.is_list:
            self.parts.take(data, self._prompt_from, at)
            self._prompt_from = at
            self.last_role = None
            self.work += _ITEM_WORK
        self.parts.begin_item()

    def _end_item(self, data: bytes, end: int) -> None:
        if self.parts.is_list:
            self.parts.take(data, self._prompt_from, end)
            self._prompt_from = end
            self.parts.end_item()

    # -- strings

    def _string(self, data: bytes, pos: int, base: int) -> int:
        """Go on inside a string. Returns the position behind what was taken."""
        pos += self._escaped  # the piece before ended with a backslash that stands for this byte
        end, closed, self._escaped, dear = find_end(data, pos)
        if dear:
            self.work += DEAR_WORK
        if self._name is not None:
            begun = self._string_from
            self._name += data[begun : min(end, begun + MAX_KEY_BYTES + 1)]
            if len(self._name) > MAX_KEY_BYTES:
                raise RequestError(f"A field's name is longer than {MAX_KEY_BYTES} bytes.")
            self._string_from = end
        if not closed:
            return end
        self._in_string = False
        if self._depth > 1:
            if self._prompt:
                self._deep_string_closed(data, end, base)
        elif self._name is not None:
            self._take_key(bytes(self._name))
            self._name = None
        else:
            self._end_value(data, end + 1, base)
        return end + 1

    def _deep_string_closed(self, data: bytes, close: int, base: int) -> None:
        if base + close - self._string_start > _MAX_ROLE_BYTES:
            self._blob_closed(data, close, base)
            self._short = b""
        else:
            start = self._string_from
            if self._string_start >= base:
                text = data[start:close]
            else:  # it began in the piece before
                text = (self._tail + data[:close])[-(base + close - self._string_start - 1) :]
                if base + close - self._string_start == 1:
                    text = b""
            if self._depth == 3 and self._short == _ROLE and self._is_value(data, base):
                self.last_role = text.decode("utf-8", "replace")
            self._short = text
        if self._depth == 2:
            self._end_item(data, close + 1)

    def _is_value(self, data: bytes, base: int) -> bool:
        """Whether the string stands behind a colon."""
        return self._before(data, base).rstrip(_SPACE).endswith(b":")

    def _before(self, data: bytes, base: int) -> bytes:
        """What stands before the string, as far as it is kept."""
        at = self._string_start - base
        if at >= MAX_BEFORE_BYTES:
            return data[at - MAX_BEFORE_BYTES : at]
        if at >= 0:
            return self._tail + data[:at]
        return self._tail[: len(self._tail) + at]

    # -- pictures

    @property
    def _may_hold_blob(self) -> bool:
        """Whether the string is inside a part of the prompt, and not all of it."""
        return self._prompt and self._depth > (2 if self.parts.is_list else 1)

    def _watch_string(self, data: bytes, stop: int, base: int) -> None:
        """Look whether the string may be a picture."""
        start = self._string_start - base + 1
        before = self._before(data, base) if start > 0 else None
        self._blob.take(data, max(start, 0), stop, before)

    def _blob_closed(self, data: bytes, close: int, base: int) -> None:
        """A string of the prompt is over: it may have been a picture."""
        start, end = self._string_start + 1, base + close
        if end - start < LEAST_BLOB_CHARS or not self._may_hold_blob:
            return
        self._watch_string(data, close, base)
        blob = self._blob.end(end - start)
        self.work += _BLOB_WORK
        if blob is not None:
            self.parts.found_blob(blob.head, end - start)
            if len(self.blobs) < MAX_BLOBS:
                self.blobs.append(Piece(start + blob.rest, end))


def _invalid(what: str) -> RequestError:
    return RequestError(f"The request body is not valid JSON: {what}.")
