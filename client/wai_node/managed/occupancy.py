"""How much memory the node's models leave: now, and for one that others make room for. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from wai_node.models.hardware import Hardware
from wai_node.models.space import NOTHING, Space

from .deployment import State
from .entry import DeploymentEntry
from .load_policy import LoadPolicy


def free_now(entries: Iterable[DeploymentEntry], hardware: Hardware) -> Hardware:
    """Return the machine less what servers will take that are loading.

    A server's weights are pages of a file, which the system counts as free as long as it could drop
    them; so what the servers need counts too.
    """
    return _beside(entries, hardware, NOTHING)


def free_for(
    entries: Iterable[DeploymentEntry], hardware: Hardware, policy: LoadPolicy, alias: str
) -> Hardware:
    """Return the machine as the deployment `alias` can have it: all are unloaded that ever make
    room for it, and all others are loaded. One that is loading counts as loaded."""
    stays, freed = [], NOTHING
    for entry in entries:
        if entry.model.alias != alias and _makes_room(entry, policy):
            freed += sum((held.most for held in entry.held.values()), NOTHING)
        else:
            stays.append(entry)
    return _beside(stays, hardware, freed).with_taken(promised(stays, policy, alias))


def _beside(entries: Iterable[DeploymentEntry], hardware: Hardware, freed: Space) -> Hardware:
    """Return what `entries` leave of the machine, once others have freed so much."""
    loading, resident = NOTHING, 0
    for entry in entries:
        for generation, held in entry.held.items():
            if generation == entry.machine.loading:
                loading += held.most
            else:
                resident += held.least_ram
    more = hardware.with_freed(freed)
    ram = min(more.ram_available_bytes, more.ram_total_bytes - resident)
    return replace(more, ram_available_bytes=max(0, ram)).with_taken(loading)


def promised(entries: Iterable[DeploymentEntry], policy: LoadPolicy, alias: str) -> Space:
    """Return what others will take that are not loaded yet, and make no room for `alias`."""
    coming = (
        entry.needs
        for entry in entries
        if entry.model.alias != alias
        and not (entry.held or entry.removed or _makes_room(entry, policy))
        and entry.machine.state is not State.FAILED
    )
    return sum(coming, NOTHING)


def _makes_room(entry: DeploymentEntry, policy: LoadPolicy) -> bool:
    other = entry.model.policy
    return policy.priority > other.priority or other.on_demand
