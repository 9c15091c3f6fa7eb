"""How busy the nodes' machines are: their last word, and a quarter of an hour before it.

A node tells by EVENTs `hardware` (SPEC section 6): each second while it is watched, else every
15 s. What one tells is checked, bounded, and taken at most twice a second.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Set
from typing import Any, Final

import msgspec

from wai_api.hardware import HISTORY_STEP_S, HISTORY_STEPS, HardwareView, MachineNow

EVENT: Final = "hardware"
LEAST_S: Final = 0.5  # a node looks once a second; what comes quicker is dropped
FRESH_S: Final = 45.0  # three slow looks: an older word is of a machine that says nothing more

_log = logging.getLogger("wai.nodes")


class _History:
    """The mean use in each step, the newest last."""

    __slots__ = ("_count", "_step", "_sum", "steps")

    def __init__(self) -> None:
        self.steps: deque[float | None] = deque([None] * HISTORY_STEPS, maxlen=HISTORY_STEPS)
        self._step: int | None = None
        self._sum, self._count = 0.0, 0

    def add(self, use: float | None, now: float) -> None:
        """Take a use in percent, None: not told."""
        step = int(now // HISTORY_STEP_S)
        missed = 1 if self._step is None else min(step - self._step, HISTORY_STEPS)
        if missed > 0:
            self.steps.extend([None] * missed)
            self._step, self._sum, self._count = step, 0.0, 0
        if use is not None:
            self._sum += use
            self._count += 1
            self.steps[-1] = round(self._sum / self._count, 1)


class HardwareBook:
    """The rows by node. A row is replaced when it changes: who looks compares identities."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.rows: dict[str, HardwareView] = {}
        self._clock, self._wall_clock = clock, wall_clock
        self._told_at: dict[str, float] = {}
        self._histories: dict[str, _History] = {}
        self._senseless: set[str] = set()

    def hear(self, node_id: str, name: str, value: Any) -> None:
        """A node told of something on its own."""
        if name != EVENT:
            return
        now = self._clock()
        if now - self._told_at.get(node_id, float("-inf")) < LEAST_S:
            return
        self._told_at[node_id] = now
        try:
            machine = msgspec.convert(value, MachineNow)
        except msgspec.ValidationError as error:
            if node_id not in self._senseless:
                self._senseless.add(node_id)
                _log.warning("node %s tells of its machine what makes no sense: %s", node_id, error)
            return
        self._senseless.discard(node_id)
        history = self._histories.setdefault(node_id, _History())
        history.add(use_of(machine), now)
        self.rows[node_id] = HardwareView(
            id=node_id, at=self._wall_clock(), now=machine, history=tuple(history.steps)
        )

    def fresh(self, node_id: str) -> MachineNow | None:
        """The machine as it was told lately."""
        row = self.rows.get(node_id)
        if row is None or self._clock() - self._told_at[node_id] > FRESH_S:
            return None
        return row.now

    def keep(self, node_ids: Set[str]) -> None:
        """Forget all other nodes."""
        for node_id in [known for known in self._told_at if known not in node_ids]:
            self.rows.pop(node_id, None)
            self._histories.pop(node_id, None)
            self._senseless.discard(node_id)
            del self._told_at[node_id]


def use_of(machine: MachineNow) -> float | None:
    """The use of the busiest GPU, or of the processor where there is none."""
    if not machine.gpus:
        return machine.cpu
    return max((gpu.use for gpu in machine.gpus if gpu.use is not None), default=None)
