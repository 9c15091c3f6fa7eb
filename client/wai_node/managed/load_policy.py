"""When a deployment is in memory: kept loaded, or on demand, and how important it is. Pure.

The words are those of the command line, the API and the dashboard too.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from wai_protocol.errors import RequestError

KEEP_LOADED: Final = "keep_loaded"
ON_DEMAND: Final = "on_demand"
MIN_IDLE_S, MAX_IDLE_S = 1.0, 1e9  # with less, a model could be unloaded before its first request
MAX_PRIORITY: Final = 100


class LoadPolicy(msgspec.Struct, frozen=True):
    """`load`: whether it is always to be in memory, or only while it is used. `idle_unload_s`: its
    time to live, after which one on demand is unloaded if nobody asks; None: only if another model
    needs the room. `priority`: a higher one gets memory first.

    Raises `RequestError` for values that make no sense.
    """

    load: str = "keep_loaded"
    idle_unload_s: float | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        if self.load not in (KEEP_LOADED, ON_DEMAND):
            raise RequestError(f"a model is loaded as {KEEP_LOADED} or {ON_DEMAND}")
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise RequestError(f"a priority is {-MAX_PRIORITY} to {MAX_PRIORITY}")
        if self.idle_unload_s is None:
            return
        if not MIN_IDLE_S <= self.idle_unload_s <= MAX_IDLE_S:
            raise RequestError(
                f"a model is unloaded after {MIN_IDLE_S:g} s or more without requests"
            )
        if self.load == KEEP_LOADED:
            raise RequestError(
                "a model that is kept loaded is not unloaded when it is idle: have it loaded on "
                "demand, or leave the time out"
            )

    @property
    def on_demand(self) -> bool:
        """Whether it need not be loaded while nobody asks for it."""
        return self.load == ON_DEMAND

    def changed(
        self,
        load: str | None = None,
        priority: int | None = None,
        idle_unload_s: float | UnsetType | None = UNSET,
    ) -> LoadPolicy:
        """Return this with what is given replaced. A time to live means: on demand.

        Raises `RequestError`.
        """
        idle_s = self.idle_unload_s
        if not isinstance(idle_unload_s, UnsetType):
            idle_s = idle_unload_s
            load = load or ("on_demand" if idle_s is not None else None)
        elif load == KEEP_LOADED:
            idle_s = None
        return LoadPolicy(
            load or self.load, idle_s, self.priority if priority is None else priority
        )


DEFAULT_POLICY: Final = LoadPolicy()
