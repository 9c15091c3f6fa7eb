"""The table of the kinds of faults that can be chosen by name."""

from __future__ import annotations

from typing import Any, Final

from tests.chaos.kind import Kind

from .books import BusyDatabase, ClockJumps, FullDisk
from .copied import CopiedIdentity, CopiedIdentityOnABadLink
from .link import Flapping, Mixed, Outage, Outage20, Outage50
from .packets import BlackHole, Delay, DelayGrows, Loss, LowRate, NarrowBlackHole, Reorder
from .vanished import VanishedCallers

KINDS: Final[dict[str, type[Kind[Any]]]] = {
    kind.name: kind
    for kind in (
        Flapping,
        Outage,
        Outage20,
        Outage50,
        Mixed,
        VanishedCallers,
        CopiedIdentity,
        CopiedIdentityOnABadLink,
        FullDisk,
        BusyDatabase,
        ClockJumps,
        Loss,
        Delay,
        DelayGrows,
        Reorder,
        LowRate,
        BlackHole,
        NarrowBlackHole,
    )
}
