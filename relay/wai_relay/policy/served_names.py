"""The names by which the models of all nodes can be asked for, and which model each stands for.

A caller may write a name as Ollama's clients do: in any case, and without the tag `:latest`. An
inference server may have other names for its models, too. An exact name always wins. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final, Protocol

from wai_protocol.status import NodeStatus

LATEST: Final = ":latest"
"""The tag that Ollama adds to a name without one."""

_Names = tuple[tuple[str, tuple[str, ...]], ...]


class Serving(Protocol):
    """What is asked of a node."""

    name: str
    status: NodeStatus


class ServingFleet(Protocol):
    """What is asked of the nodes (`contracts.upstream.Fleet`)."""

    @property
    def changes(self) -> int:
        """Another number whenever a node may serve something else."""

    def nodes(self) -> Iterable[Serving]:
        """All nodes."""


class ServedNames:
    """What `look` saw last. A node whose models have not changed costs a comparison, and a fleet
    that has not changed another one."""

    def __init__(self) -> None:
        self._changes = -1
        self._seen: dict[str, tuple[NodeStatus, _Names]] = {}
        self._models: Counter[str] = Counter()
        self._others: dict[str, Counter[str]] = {}

    def look(self, fleet: ServingFleet) -> None:
        """See what `fleet` serves now."""
        if (changes := fleet.changes) == self._changes:
            return
        self._changes = changes
        count = 0
        for node in fleet.nodes():
            count += 1
            seen = self._seen.get(node.name)
            if seen is not None and seen[0] is node.status:
                continue
            names = tuple((model.id, model.aliases) for model in node.status.models)
            if seen is None or seen[1] != names:
                self._forget(node.name)
                for model, aliases in names:
                    self._add(model, aliases)
            self._seen[node.name] = node.status, names
        if count != len(self._seen):
            for gone in self._seen.keys() - {node.name for node in fleet.nodes()}:
                self._forget(gone)

    def find(self, name: str) -> str | None:
        """The model that `name` stands for, None where there is none. Of several, always the
        same."""
        if name in self._models:
            return name
        found = self._others.get(name) or self._others.get(_folded(name))
        return min(found) if found else None

    def _add(self, model: str, aliases: tuple[str, ...]) -> None:
        self._models[model] += 1
        for name in {_folded(model), *aliases}:
            self._others.setdefault(name, Counter())[model] += 1

    def _forget(self, node: str) -> None:
        _, names = self._seen.pop(node, (None, ()))
        for model, aliases in names:
            _take(self._models, model)
            for name in {_folded(model), *aliases}:
                others = self._others[name]
                _take(others, model)
                if not others:
                    del self._others[name]


def _folded(name: str) -> str:
    return name.casefold().removesuffix(LATEST)


def _take(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if counter[name] <= 0:
        del counter[name]
