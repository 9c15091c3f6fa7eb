"""An amount of memory on a node: on each of its GPUs, and in RAM. Pure."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Final

import msgspec


class Space(msgspec.Struct, frozen=True):
    """Bytes on the GPUs, by their numbers, and in RAM. Where a GPU's memory is RAM, all is in
    `ram`."""

    gpus: tuple[int, ...] = ()
    ram: int = 0

    @property
    def gpu(self) -> int:
        """The bytes on all GPUs together."""
        return sum(self.gpus)

    def __add__(self, other: Space) -> Space:
        return self._with(other, int.__add__)

    def __sub__(self, other: Space) -> Space:
        return self._with(other, int.__sub__)

    def __bool__(self) -> bool:
        return any(size > 0 for size in (*self.gpus, self.ram))

    def holds(self, other: Space) -> bool:
        """Whether `other` fits in here. A kind of memory that it does not need may be overdrawn."""
        pairs = [*zip_longest(self.gpus, other.gpus, fillvalue=0), (self.ram, other.ram)]
        return all(needed <= 0 or needed <= free for free, needed in pairs)

    def on(self, number: int) -> int:
        """The bytes on one GPU."""
        return self.gpus[number] if number < len(self.gpus) else 0

    def __str__(self) -> str:
        gpu, ram = (f"{size / (1 << 30):.1f} GiB" for size in (self.gpu, self.ram))
        if self.gpu <= 0:
            return ram
        where = "GPUs" if sum(size > 0 for size in self.gpus) > 1 else "GPU"
        return f"{gpu} on the {where}" + (f" and {ram} of RAM" if self.ram > 0 else "")

    def _with(self, other: Space, done: Callable[[int, int], int]) -> Space:
        pairs = zip_longest(self.gpus, other.gpus, fillvalue=0)
        gpus = [done(mine, theirs) for mine, theirs in pairs]
        while gpus and not gpus[-1]:
            gpus.pop()
        return Space(tuple(gpus), done(self.ram, other.ram))


NOTHING: Final = Space()
