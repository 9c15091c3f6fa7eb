"""Which of an engine's devices is which of the machine's GPUs. Pure.

The engine names its devices (CUDA0, Vulkan1), the drivers number their GPUs. Name, size and free
memory of both are compared, when both were asked at about the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from wai_node.models.hardware import Gpu

from .probe import Device

_SAME_SIZE: Final = 0.1  # drivers keep some of the memory, and tell of it or not


def match_devices(cards: Sequence[Gpu], devices: Sequence[Device]) -> dict[int, str]:
    """Return the engine's name of each GPU that it can use, by the GPU's number.

    A device that is no GPU of `cards`, or a second name of one, is left out.
    """
    found: dict[int, str] = {}
    for device in devices:
        alike = [card for card in cards if card.number not in found and _alike(card, device)]
        if alike:
            best = min(alike, key=lambda card: _distance(card, device))
            found[best.number] = device.name
    return found


def _alike(card: Gpu, device: Device) -> bool:
    return abs(card.total_bytes - device.total_bytes) <= _SAME_SIZE * card.total_bytes


def _distance(card: Gpu, device: Device) -> tuple[bool, int]:
    """How unlike they are: other names first, then other free memory."""
    mine, its = card.name.casefold(), device.description.casefold()
    return not (mine in its or its in mine), abs(card.free_bytes - device.free_bytes)
