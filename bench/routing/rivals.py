"""All policies that are compared, by the name that the table gives them."""

from __future__ import annotations

from typing import Final

from bench.routing.baselines import (
    CacheAwarePerSlot,
    InferenceExtension,
    Preble,
    WeightedLeastConnections,
)
from bench.routing.ours import Ours
from bench.routing.policies import (
    CacheAware,
    LeastConnections,
    MostFreeSlots,
    Policy,
    PowerOfChoices,
    PrefixHash,
    Random,
    RelayQueue,
    RoundRobin,
)

POLICIES: Final[dict[str, type[Policy]]] = {
    "random": Random,
    "round robin": RoundRobin,
    "least connections": LeastConnections,
    "power of choices": PowerOfChoices,
    "most free slots": MostFreeSlots,
    "free slots, relay queue": RelayQueue,
    "prefix hash": PrefixHash,
    "cache-aware": CacheAware,
    "weighted least connections": WeightedLeastConnections,
    "cache-aware per slot": CacheAwarePerSlot,
    "preble": Preble,
    "inference extension": InferenceExtension,
    "wai": Ours,
}
