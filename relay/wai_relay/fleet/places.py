"""Who holds one of a bounded number of places; when all are taken, the oldest holder loses its own.

A place is for those who have proven nothing yet. To refuse the newest when all are taken would let
silent strangers lock everybody out, so the oldest goes: whoever is quick keeps its place until it
is done. A peer that takes more than its share pushes out its own first. No I/O.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Places(Generic[T]):
    """`limit` places, of which one peer has `limit_per_peer` at most."""

    def __init__(self, limit: int, limit_per_peer: int) -> None:
        self._limit = limit
        self._limit_per_peer = limit_per_peer
        self._peers: dict[T, str] = {}  # all holders, the oldest first
        self._holders: dict[str, dict[T, None]] = {}  # by peer, the oldest first

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[T]:
        return iter(self._peers)

    def take(self, holder: T, peer: str) -> T | None:
        """Give `holder` of `peer` a place; peers without a name ("") are bounded by `limit` alone.

        Returns who lost its place for it, if anyone did.
        """
        lost: T | None = None
        of_peer = self._holders.get(peer, {})
        if len(of_peer) >= self._limit_per_peer:
            lost = next(iter(of_peer))
        elif len(self._peers) >= self._limit:
            lost = next(iter(self._peers))
        if lost is not None:
            self.free(lost)
        self._peers[holder] = peer
        if peer:
            self._holders.setdefault(peer, {})[holder] = None
        return lost

    def free(self, holder: T) -> None:
        """`holder` needs its place no more. Idempotent."""
        peer = self._peers.pop(holder, None)
        if not peer:
            return
        of_peer = self._holders[peer]
        del of_peer[holder]
        if not of_peer:
            del self._holders[peer]
