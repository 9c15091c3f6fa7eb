"""All deployments of this node: the entries by alias, and their records on the disk.

The relay's CALLs and the servers' logs change both; the lock `changing` serialises such changes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import anyio
import anyio.to_thread

from wai_protocol.errors import Fault, RequestError, StoreError

from .entry import DeploymentEntry
from .wanted import Wanted, WantedModel

log = logging.getLogger("wai.node.managed")


class Deployments:
    """The entries, including those that are being removed. `wanted` stores them on the disk."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.changing = anyio.Lock()  # held during a change of the wanted state
        self._entries: dict[str, DeploymentEntry] = {}

    def __iter__(self) -> Iterator[DeploymentEntry]:
        return iter(self._entries.values())

    def find(self, alias: str) -> DeploymentEntry | None:
        """Return the entry, even if it is being removed; None if there is none."""
        return self._entries.get(alias)

    def get(self, alias: str) -> DeploymentEntry:
        """Return the entry of a deployed model. Raises `RequestError` if it is not deployed."""
        entry = self._entries.get(alias)
        if entry is None or entry.removed:
            names = ", ".join(self._entries) or "nothing"
            raise RequestError(
                f"{alias[:120]!r} is not deployed on this node; it has: {names}",
                Fault.MODEL_NOT_FOUND,
            )
        return entry

    def check_alias(self, model: str, alias: str) -> None:
        """Raise `RequestError` if another deployment than `model` is asked for by this name."""
        for entry in self._entries.values():
            names = entry.model.alias, entry.machine.wish.options.alias
            if alias and not entry.removed and entry.model.alias != model and alias in names:
                raise RequestError(
                    f"callers ask for {entry.model.alias} by the name {alias}; choose another alias"
                )

    def add(self, entry: DeploymentEntry) -> None:
        """Add an entry, or replace that of the same alias."""
        self._entries[entry.model.alias] = entry

    def forget(self, entry: DeploymentEntry) -> None:
        """Drop an entry whose servers have ended and whose files are deleted."""
        if self._entries.get(entry.model.alias) is entry:
            del self._entries[entry.model.alias]

    async def keep(self, entry: DeploymentEntry) -> None:
        """Store what was learned about a model. An error of the disk is only logged."""
        async with self.changing:
            if entry.removed or entry.model.alias not in self.wanted.models:
                return
            try:
                await anyio.to_thread.run_sync(self.wanted.put, entry.model)
            except StoreError as error:
                log.warning("%s", error)

    async def deleted(self, model: WantedModel) -> None:
        """Store that the files of a removed model are deleted."""
        async with self.changing:
            try:
                await anyio.to_thread.run_sync(self.wanted.deleted, model.alias)
            except StoreError as error:
                log.warning("%s", error)
