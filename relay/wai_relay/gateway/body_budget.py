"""Bounds what requests hold of their bodies, all together and those of one key. Pure."""

from __future__ import annotations

from wai_protocol.errors import Fault, WaiError


class BodyBudget:
    """So many bytes, in memory or on disk.

    A key may hold as much as it leaves free: half of the budget if nobody else holds anything, a
    third each if two keys press, and so on. So there is always room for one that holds nothing.
    """

    def __init__(self, limit_bytes: int, where: str = "") -> None:
        """`where` the bodies are, for the refusals, as " on its disk"."""
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._where = where
        self._held: dict[str, int] = {}

    def take(self, key_id: str, n: int, *, share: float = 1.0) -> None:
        """Hold `n` bytes more for `key_id`, or raise `WaiError` (OVERLOADED). `share`: how much of
        the budget may be used for that."""
        limit = int(self.limit_bytes * share)
        held_after = self.held_bytes + n
        if held_after > limit:
            raise overloaded(f"The relay holds as many request bodies{self._where} as it may")
        own_after = self._held.get(key_id, 0) + n
        if own_after > limit - held_after:
            raise overloaded(
                f"The relay holds as many request bodies of this API key{self._where} as it may"
            )
        self.held_bytes = held_after
        self._held[key_id] = own_after

    def give(self, key_id: str, n: int) -> None:
        """`n` bytes are held no more."""
        self.held_bytes -= n
        held = self._held.get(key_id, 0) - n
        if held:
            self._held[key_id] = held
        else:
            self._held.pop(key_id, None)


def overloaded(what: str) -> WaiError:
    """The refusal of a body for which there is no room now."""
    return WaiError(f"{what}; try again soon.", Fault.OVERLOADED, retry_after_s=1.0)
