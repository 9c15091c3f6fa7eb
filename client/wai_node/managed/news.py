"""What the relay is told of deployments, and how often: changes of state at once, the rest paced.

How many requests a model has in flight changes with every request, and a download's progress with
every block. Of such changes the relay gets the latest, at most four times a second for each model.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from .entry import DeploymentStatus

PROGRESS_EVERY_S: Final = 0.25

CallLater = Callable[[float, Callable[[], None]], Any]


class DeploymentNews:
    """Passes statuses on to `tell`. Belongs to one event loop."""

    def __init__(
        self,
        tell: Callable[[DeploymentStatus], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        call_later: CallLater | None = None,
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._call_later = call_later or _call_later
        self._told: dict[str, tuple[tuple[object, ...], float]] = {}  # by alias: what, when
        self._latest: dict[str, DeploymentStatus] = {}  # what waits to be told, by alias

    def update(self, status: DeploymentStatus) -> None:
        """Take a deployment's status as it is now."""
        alias, now = status.alias, self._clock()
        what, told_at = self._told.get(alias, ((), now - PROGRESS_EVERY_S))
        wait_s = told_at + PROGRESS_EVERY_S - now
        if what != _lasting(status) or wait_s <= 0:
            self._latest.pop(alias, None)
            self._told[alias] = (_lasting(status), now)
            self._tell(status)
            return
        if alias not in self._latest:
            self._call_later(wait_s, lambda: self._tell_latest(alias))
        self._latest[alias] = status

    def _tell_latest(self, alias: str) -> None:
        if (status := self._latest.pop(alias, None)) is not None:
            self.update(status)


def _lasting(status: DeploymentStatus) -> tuple[object, ...]:
    """What of a status does not change with every request or block."""
    return (
        *(status.state, status.reason, status.swap_error, status.changing),
        *(status.context_tokens, status.context_served, status.slots),
        *(status.options, status.policy),
    )


def _call_later(delay_s: float, call: Callable[[], None]) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(delay_s, call)
