"""Requests that wait for a slot: bounded, fair between keys, by priority.

Start-time fair queueing: each entry gets the virtual time at which its key's turn comes, which
moves on by the work that the key asks for, divided by the weight of the entry's class. A key's
burst is served at the key's own pace beside everybody else's; a low class waits longer, but never
for ever. Within a key an entry may let some of those pass that come after it, as long as serving
them takes no longer than it allows; the key's turns stay where they are. When the queue is full, a
newcomer takes the place of the last entry of the key that fills it, unless that is its own. Pure:
it holds no clock; who waits too long is taken out by `scheduler`.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from wai_api.bounds import MAX_PRIORITY
from wai_protocol.errors import Fault, NodeUnavailable

# Together with the bodies that wait behind them (bounded by the gateway) what a small VPS can
# hold; and with one minute's patience, more than a few nodes could serve in time.
MAX_WAITING: Final = 256

SLACK: Final = 1 + 1e-9

T = TypeVar("T")


def weight(priority: int) -> float:
    """What a class counts in the queue: each step up or down is four times or a quarter."""
    return 4.0 ** max(-MAX_PRIORITY, min(MAX_PRIORITY, priority))


class Entry(Generic[T]):
    """One that waits: `key_id` whose turn it takes, `item` what waits, `turn` its place in order,
    `takes` how long serving it keeps the others waiting.
    `due` orders those of a key: by arrival, but for those that let others pass."""

    __slots__ = ("due", "item", "key_id", "step", "takes", "turn")

    def __init__(
        self,
        key_id: str,
        item: T,
        step: float,
        turn: tuple[float, int],
        due: float,
        takes: float,
    ) -> None:
        self.takes = takes
        self.due = due
        self.key_id = key_id
        self.item = item
        self.step = step
        self.turn = turn


class FairQueue(Generic[T]):
    """The waiting requests, in the order in which they are to be served."""

    __slots__ = (
        "_arrived",
        "_entries",
        "_next",
        "_patient",
        "_serial",
        "_virtual",
        "_waiting",
        "_waiting_takes",
        "limit",
    )

    def __init__(self, limit: int = MAX_WAITING) -> None:
        self.limit = limit
        self._entries: list[Entry[T]] = []  # sorted by turn
        self._next: dict[str, float] = {}  # when a waiting key's next turn is, in virtual time
        self._waiting: dict[str, int] = {}
        self._waiting_takes: dict[str, float] = {}
        # Of a waiting key: what serving those takes that came since it began to wait, and what is
        # due last of those that let others pass (they don't pass each other).
        self._arrived: dict[str, float] = {}
        self._patient: dict[str, float] = {}
        self._virtual = 0.0
        self._serial = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry[T]]:
        """In the order of turns. Entries may be removed while this runs: it goes over a copy."""
        return iter(self._entries.copy())

    def waiting(self, key_id: str) -> int:
        """How many entries of this key wait."""
        return self._waiting.get(key_id, 0)

    def waiting_takes(self, key_id: str) -> float:
        """How long it takes to serve all entries of this key that wait."""
        return self._waiting_takes.get(key_id, 0.0)

    def push(
        self,
        key_id: str,
        item: T,
        *,
        work: float,
        takes: float = 1.0,
        lets_pass: float = 0.0,
        priority: int = 0,
    ) -> tuple[Entry[T], Entry[T] | None]:
        """Let `item` wait. `work` is what it will cost, in tokens, and `takes` for how long it will
        keep the others waiting. Of its own key's entries that come after it and don't let others
        pass themselves, it `lets_pass` as many as take so long together.

        Returns its entry and the one that had to leave for it, if any. Raises `NodeUnavailable`
        (`QUEUE_FULL`) when there is no place.
        """
        displaced = self._make_room(key_id) if len(self._entries) >= self.limit else None
        step = max(work, 1.0) / weight(priority)
        start = max(self._virtual, self._next.get(key_id, 0.0))
        self._serial += 1
        arrived = self._arrived[key_id] = self._arrived.get(key_id, 0.0) + takes
        due = arrived
        if lets_pass:  # a trace more: who is the last to pass is not a tie
            due = max(arrived + lets_pass * SLACK, self._patient.get(key_id, 0.0))
            self._patient[key_id] = due
        entry = Entry(key_id, item, step, (start, self._serial), due, takes)
        bisect.insort(self._entries, entry, key=_turn)
        self._pass_later(entry)
        self._next[key_id] = start + step
        self._waiting[key_id] = self._waiting.get(key_id, 0) + 1
        self._waiting_takes[key_id] = self._waiting_takes.get(key_id, 0.0) + takes
        return entry, displaced

    def take(self, entry: Entry[T]) -> None:
        """`entry` is served now: it leaves, and time goes on to its turn."""
        self._remove(entry)
        self._virtual = max(self._virtual, entry.turn[0])
        if entry.key_id not in self._waiting:
            # It pays for this turn when it comes back at once; one that stays away is forgotten.
            self._next[entry.key_id] = entry.turn[0] + entry.step
            self._forget_past()

    def hurry(self, entry: Entry[T]) -> None:
        """`entry` lets nobody of its key pass any more, and passes those that came before it."""
        entry.due = -math.inf
        self._pass_later(entry)

    def discard(self, entry: Entry[T]) -> None:
        """`entry` leaves unserved; those of its key that wait behind it move up. Idempotent."""
        if not self._remove(entry):
            return
        behind = [e for e in self._entries if e.key_id == entry.key_id and e.turn > entry.turn]
        for other in behind:
            self._entries.remove(other)
        for other in behind:
            other.turn = (other.turn[0] - entry.step, other.turn[1])
            bisect.insort(self._entries, other, key=_turn)
        if entry.key_id in self._waiting:
            self._next[entry.key_id] -= entry.step
        else:
            self._next.pop(entry.key_id, None)

    def _pass_later(self, entry: Entry[T]) -> None:
        """Change places with those of the same key that are due later: the key's turns stay."""
        entries = self._entries
        mine = bisect.bisect_left(entries, entry.turn, key=_turn)
        for index in range(mine - 1, -1, -1):
            other = entries[index]
            if other.key_id != entry.key_id:
                continue
            if other.due <= entry.due:
                return
            entries[index], entries[mine] = entry, other
            entry.turn, other.turn = other.turn, entry.turn
            mine = index

    def _remove(self, entry: Entry[T]) -> bool:
        index = bisect.bisect_left(self._entries, entry.turn, key=_turn)
        if index == len(self._entries) or self._entries[index] is not entry:
            return False
        del self._entries[index]
        if self._waiting[entry.key_id] == 1:
            del self._waiting[entry.key_id], self._arrived[entry.key_id]
            del self._waiting_takes[entry.key_id]
            self._patient.pop(entry.key_id, None)
        else:
            self._waiting[entry.key_id] -= 1
            self._waiting_takes[entry.key_id] -= entry.takes
        return True

    def _make_room(self, key_id: str) -> Entry[T]:
        greediest, most = max(self._waiting.items(), key=lambda pair: pair[1], default=("", 0))
        if most <= self._waiting.get(key_id, 0) + 1:  # its place would only move between equals
            raise full()
        last = next(e for e in reversed(self._entries) if e.key_id == greediest)
        self.discard(last)
        return last

    def _forget_past(self) -> None:
        """Keys whose turn has passed pay nothing when they come back: drop what is said of them."""
        if len(self._next) > 2 * self.limit:
            past = [
                k for k, at in self._next.items() if at <= self._virtual and k not in self._waiting
            ]
            for key_id in past:
                del self._next[key_id]


def full() -> NodeUnavailable:
    """The refusal for one that finds no place."""
    return NodeUnavailable(
        "All slots are busy and the queue is full; try again shortly.",
        Fault.QUEUE_FULL,
        retry_after_s=1.0,
    )


def _turn(entry: Entry[T]) -> tuple[float, int]:
    return entry.turn
