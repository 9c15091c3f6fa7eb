"""An amount of memory on a node: on its GPUs together, and in RAM. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes on the GPUs and in RAM. Where the GPU's memory is RAM, all is in `ram`."""

    gpu: int = 0
    ram: int = 0

    def __add__(self, other: Space) -> Space:
        return Space(self.gpu + other.gpu, self.ram + other.ram)

    def __sub__(self, other: Space) -> Space:
        return Space(self.gpu - other.gpu, self.ram - other.ram)

    def __bool__(self) -> bool:
        return self.gpu > 0 or self.ram > 0

    def holds(self, other: Space) -> bool:
        """Whether `other` fits in here. A kind of memory that it does not need may be overdrawn."""
        return (other.gpu <= 0 or other.gpu <= self.gpu) and (
            other.ram <= 0 or other.ram <= self.ram
        )

    def __str__(self) -> str:
        gpu, ram = (f"{size / (1 << 30):.1f} GiB" for size in (self.gpu, self.ram))
        if self.gpu <= 0:
            return ram
        return f"{gpu} on the GPU" + (f" and {ram} of RAM" if self.ram > 0 else "")


NOTHING: Final = Space()
