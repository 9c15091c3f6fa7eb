"""The list of what is wrong, put together. It asks nobody: each part says what it knows by then."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Protocol

import msgspec

from wai_api.health import ProblemView
from wai_api.models import DeploymentView
from wai_relay.observe.outcomes import Outcomes

from .clock import ClockWatch
from .condition import RelayCondition
from .config import HealthConfig
from .keys import KnownKey, key_problems
from .nodes import WatchedNode, deployment_problems, failing_problems, node_problems
from .providers import WatchedProvider, provider_problems
from .relays import WatchedRelays, relay_problems


class Receivers(Protocol):
    """Whoever is told of problems, and may have some of its own (`notify`)."""

    def problems(self) -> Iterable[ProblemView]:
        """Notifications that can't be delivered."""


class _NoReceivers:
    def problems(self) -> Iterable[ProblemView]:
        return ()


class Health(msgspec.Struct):
    """Reads the relay's parts. `known_key`: finds a key by its id, a revoked one too."""

    condition: RelayCondition
    nodes: Callable[[], Iterable[WatchedNode]]
    outcomes: Outcomes
    deployed: Callable[[], Iterable[DeploymentView]] = tuple
    providers: Callable[[], Iterable[WatchedProvider]] = tuple
    relays: WatchedRelays | None = None
    known_key: Callable[[str], KnownKey | None] = lambda _: None
    clock_watch: ClockWatch = msgspec.field(default_factory=ClockWatch)
    receivers: Receivers = msgspec.field(default_factory=_NoReceivers)
    config: HealthConfig = msgspec.field(default_factory=HealthConfig)
    clock: Callable[[], float] = time.time
    _since: dict[str, float] = msgspec.field(default_factory=dict)
    """When each of the problems of the last look was seen first, by its id."""

    def problems(self) -> tuple[ProblemView, ...]:
        """Everything that is wrong now, the relay's own problems first."""
        found = {
            one.id: one for one in self._problems() if one.kind not in self.config.ignore
        }  # by id: two that look the same are one
        now = self.clock()
        self._since = {name: self._since.get(name, now) for name in found}
        return tuple(
            msgspec.structs.replace(one, since=self._since[one.id]) for one in found.values()
        )

    def _problems(self) -> Iterator[ProblemView]:
        nodes: Collection[WatchedNode] = list(self.nodes())
        providers = list(self.providers())
        yield from self.condition.problems(self.clock())
        yield from self.clock_watch.problems(_clocks(providers, self.relays))
        yield from self.receivers.problems()
        if self.relays is not None:
            yield from relay_problems(self.relays, database_away=self.condition.away() is not None)
        found = [*node_problems(nodes), *provider_problems(providers)]
        yield from found
        told = {one.subject for one in found}
        yield from failing_problems(self.outcomes.failing(), nodes, told)
        yield from deployment_problems(self.deployed())
        yield from key_problems(self.outcomes.refused(), self.known_key)


def _clocks(
    providers: Iterable[WatchedProvider], relays: WatchedRelays | None
) -> Iterator[tuple[str, float]]:
    if relays is not None:
        yield "the database", relays.clock_ahead_s
    for provider in providers:
        if provider.ahead_s is not None:
            yield provider.name, provider.ahead_s
