"""Measures a prompt as it streams past: its size, and the marks of its beginning. Pure.

Parts are what `bodies` takes apart too: each message alone, and every other field whole.
"""

from __future__ import annotations

from typing import Final

from wai_relay.policy.fingerprints import BLOCK_BYTES, MAX_BLOCKS, Fingerprint, chained

from .prompt_size import PromptMeter, PromptSize

FRAMING_BYTES: Final = len(b'{"role":"user","content":""},')  # of a message that is no prompt text


class PartsMeter:
    """Told where the fields of a prompt and their messages begin and end, and what is in them."""

    def __init__(self, fields: tuple[str, ...]) -> None:
        """`fields`: the names of a prompt's fields, in the order in which the model reads them."""
        self.is_list = False
        """Whether the field that is being read is a list whose items are the parts."""
        self.items: dict[str, int] = {}
        """How many strings, lists and objects stand in each field that is a list."""
        self._fields = fields
        self._field = ""
        self._meter = PromptMeter()
        self._chains: dict[str, list[int]] = {}
        self._chain: list[int] = []
        self._block = bytearray()
        self._in_part = False
        self._part_bytes = 0
        self._rest_bytes = 0  # of a list, outside its items

    def begin(self, field: str) -> None:
        """A field begins, which is one part unless it turns out to be a list of them."""
        self._field = field
        self._chain = self._chains[field] = []
        self.is_list = False
        self._begin_part()

    def opened(self, bracket: bytes) -> None:
        """The field is an object or a list."""
        self.is_list = bracket == b"[" and self._field in ("messages", "input")
        self._in_part = not self.is_list
        self._rest_bytes = 0
        self.items[self._field] = 0

    def begin_item(self) -> None:
        """A string, a list or an object begins in a list."""
        self.items[self._field] += 1
        if self.is_list:
            self._begin_part()

    def end_item(self) -> None:
        """It is over."""
        if self.is_list:
            self._end_part()

    def end(self) -> None:
        """The field is over."""
        if self._in_part:
            self._end_part()
        elif not self.items[self._field]:  # a list of numbers, or of nothing
            self._meter.text += max(self._rest_bytes - len(b"[]"), 0)
        self.is_list = False

    def take(self, data: bytes, start: int, stop: int, *, blob: bool = False) -> None:
        """The next bytes of the field, `data[start:stop]`. `blob`: they are of a picture, as far as
        can be seen."""
        if start >= stop:
            return
        if not blob:
            self._meter.sample(data, start, stop)
        if not self._in_part:
            self._rest_bytes += stop - start
            return
        self._part_bytes += stop - start
        chain, block = self._chain, self._block
        while start < stop and len(chain) < MAX_BLOCKS:
            end = min(start + BLOCK_BYTES - len(block), stop)
            block += data[start:end]
            start = end
            if len(block) == BLOCK_BYTES:
                self._end_block()

    def found_blob(self, head: bytes, size: int) -> None:
        """A string of the prompt with `size` bytes, which begins with `head`, is a picture."""
        self._meter.add_image(head)
        self._meter.text -= size + len(b'""')

    def size(self) -> PromptSize:
        """The whole prompt's."""
        return self._meter.size()

    def prefix(self) -> Fingerprint:
        """The marks of its beginning."""
        return chained(mark for field in self._fields for mark in self._chains.get(field, ()))

    def _begin_part(self) -> None:
        self._in_part = True
        self._part_bytes = 0
        self._block.clear()

    def _end_part(self) -> None:
        self._in_part = False
        self._meter.text += max(self._part_bytes - FRAMING_BYTES, 1)
        if self._block:
            self._end_block()

    def _end_block(self) -> None:
        self._chain.append(hash(bytes(self._block)))
        self._block.clear()
