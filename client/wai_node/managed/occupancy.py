"""How much memory the node's models leave: now, and for one that others make room for. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

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
    loading, resident = NOTHING, 0
    for entry in entries:
        for generation, held in entry.held.items():
            if generation == entry.machine.loading:
                loading += held.most
            else:
                resident += held.least_ram
    ram = min(hardware.ram_available_bytes, hardware.ram_total_bytes - resident)
    return _taken(replace(hardware, ram_available_bytes=max(0, ram)), loading)


def free_for(
    entries: Iterable[DeploymentEntry], hardware: Hardware, policy: LoadPolicy, alias: str
) -> Hardware:
    """Return the machine as the deployment `alias` can have it: all are unloaded that ever make
    room for it, and all others are loaded."""
    free = _taken(free_now(entries, hardware), promised(entries, policy, alias))
    for entry in entries:
        if entry.model.alias != alias and _makes_room(entry, policy):
            free = _freed(free, sum((held.most for held in entry.held.values()), NOTHING))
    return free


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


def _taken(hardware: Hardware, space: Space) -> Hardware:
    less = hardware.with_taken(space.gpu)
    return replace(less, ram_available_bytes=max(0, less.ram_available_bytes - space.ram))


def _freed(hardware: Hardware, space: Space) -> Hardware:
    more = hardware.with_freed(space.gpu)
    ram = min(more.ram_total_bytes, more.ram_available_bytes + space.ram)
    return replace(more, ram_available_bytes=ram)
