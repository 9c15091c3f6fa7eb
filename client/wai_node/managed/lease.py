"""Leases: a request holds one while it uses a deployed model.

A model with leases is not idle, and a server that drains waits for their end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio

from wai_protocol.errors import Fault, NodeUnavailable

from .deployment import Action, State
from .entry import DeploymentEntry, ServerAccess, endpoint_of


@asynccontextmanager
async def leased(
    entry: DeploymentEntry,
    apply: Callable[[DeploymentEntry, list[Action]], None],
    now: Callable[[], float],
    limit_s: float,
) -> AsyncIterator[ServerAccess]:
    """Hold a lease, and yield the endpoint to send the request to.

    Waits while the model loads, and loads it if it was unloaded. `apply` carries out the machine's
    actions. Raises `NodeUnavailable` if the model failed, was removed, or is not ready within
    `limit_s` seconds.
    """
    generation, waited = await _wait(entry, apply, now, limit_s)
    try:
        endpoint = endpoint_of(entry, generation)
        if endpoint is None:
            raise NodeUnavailable(f"{entry.model.alias} has just ended", Fault.UPSTREAM_BROKE)
        if waited and entry.loaded is not None and entry.loaded.generation == generation:
            endpoint = replace(endpoint, loaded=entry.loaded)
        yield endpoint
    finally:
        apply(entry, entry.machine.release(generation, now()))


async def _wait(
    entry: DeploymentEntry,
    apply: Callable[[DeploymentEntry, list[Action]], None],
    now: Callable[[], float],
    limit_s: float,
) -> tuple[int, bool]:
    """Wait for a generation that takes requests; return it, leased, and whether that took time."""
    alias, waits, generation = entry.model.alias, False, None
    try:
        with anyio.fail_after(limit_s):
            while True:
                changed = entry.changed
                generation, actions = entry.machine.lease(now())
                if generation is None and not waits:
                    entry.waiting, waits = entry.waiting + 1, True
                apply(entry, actions)
                if generation is not None:
                    return generation, waits
                if entry.removed or entry.machine.state in (State.FAILED, State.ABSENT):
                    why = entry.machine.reason or "it was removed"
                    raise NodeUnavailable(f"{alias} is not served: {why}", Fault.OVERLOADED)
                await changed.wait()
    except TimeoutError:
        why = f": it {entry.waits_for}" if entry.waits_for else ""
        raise NodeUnavailable(
            f"{alias} was not ready within {limit_s:g} s{why}", Fault.UPSTREAM_TIMEOUT
        ) from None
    finally:
        if waits:
            entry.waiting -= 1
            if generation is None:
                apply(entry, [])  # perhaps nobody waits for it any more
