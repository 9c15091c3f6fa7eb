"""All that is deployed on this node: the entries by alias, and what is written down of them.

What a relay asks and what the servers teach change both; `changing` keeps such changes apart.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import anyio
import anyio.to_thread

from wai_protocol.errors import Fault, RequestError, StoreError

from .entry import DeploymentEntry, pending_bytes
from .wanted import Wanted, WantedModel

log = logging.getLogger("wai.node.managed")


class Deployments:
    """The entries, also of what is just being removed. `wanted` is their wish on the disk."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.changing = anyio.Lock()  # one change of the wanted state at a time
        self._entries: dict[str, DeploymentEntry] = {}

    def __iter__(self) -> Iterator[DeploymentEntry]:
        return iter(self._entries.values())

    def find(self, alias: str) -> DeploymentEntry | None:
        """The entry, also one that is just being removed."""
        return self._entries.get(alias)

    def get(self, alias: str) -> DeploymentEntry:
        """The entry of what is deployed. Raises `RequestError` where nothing is."""
        entry = self._entries.get(alias)
        if entry is None or entry.removed:
            names = ", ".join(self._entries) or "nothing"
            raise RequestError(
                f"{alias[:120]!r} is not deployed on this node; it has: {names}",
                Fault.MODEL_NOT_FOUND,
            )
        return entry

    def add(self, entry: DeploymentEntry) -> None:
        """One more, or the same alias anew."""
        self._entries[entry.model.alias] = entry

    def forget(self, entry: DeploymentEntry) -> None:
        """Nothing of it runs or is on the disk any more."""
        if self._entries.get(entry.model.alias) is entry:
            del self._entries[entry.model.alias]

    def pending_bytes(self) -> int:
        """The memory that those on their way are about to take."""
        return sum(map(pending_bytes, self._entries.values()))

    async def keep(self, entry: DeploymentEntry) -> None:
        """Write down what is known of a model by now. A full disk costs the knowledge, no more."""
        async with self.changing:
            if entry.removed or entry.model.alias not in self.wanted.models:
                return
            try:
                await anyio.to_thread.run_sync(self.wanted.put, entry.model)
            except StoreError as error:
                log.warning("%s", error)

    async def deleted(self, model: WantedModel) -> None:
        """Write down that nothing is left of a model that was removed."""
        async with self.changing:
            try:
                await anyio.to_thread.run_sync(self.wanted.deleted, model.alias)
            except StoreError as error:
                log.warning("%s", error)
