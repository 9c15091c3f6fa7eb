"""Nodes and the models that they serve."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from msgspec import Meta, Struct

from .bounds import MAX_UPSTREAM_SLOTS
from .patterns import NODE_NAME, one_of

NodeState: TypeAlias = Annotated[
    str, one_of("ready", "starting", "draining", "reconnecting", "offline")
]


class ModelView(Struct, frozen=True, kw_only=True):
    """A model on a node. `context_tokens` is per slot. `loaded` false: it is loaded by the next
    request, in about `load_ms`; null: not known."""

    id: str
    upstream: str
    apis: tuple[str, ...]
    ready: bool
    context_tokens: int | None
    slots_total: int | None
    slots_busy: int
    queued: int
    prefill_tps: float | None
    decode_tps: float | None
    loaded: bool | None = None
    load_ms: int | None = None
    capabilities: tuple[str, ...] = ()


class NodeView(Struct, frozen=True, kw_only=True):
    """A node that has joined; in `state` starting it has not told yet what it serves.
    `models` has their ids, `serving` the same models in detail.
    The slots are those of models that are ready; `slots_total` is null where none tells.
    `connected_at` is since when its session lives, null where it has none; `reconnects` counts how
    often it came back into one. `copied`: a second machine with its identity was found lately, and
    is refused. `slots_set`: by upstream, the slots that an admin has set. `detail` is its own word
    of its hardware and system."""

    id: str
    name: str
    state: NodeState
    models: tuple[str, ...]
    serving: tuple[ModelView, ...]
    slots_total: int | None
    slots_busy: int
    queued: int
    reconnects: int
    copied: bool = False
    connected_at: float | None
    version: str
    agent: str = ""
    tags: tuple[str, ...]
    may_deploy: bool
    slots_set: dict[str, int] = {}
    joined_at: float
    detail: dict[str, Any]


class ChangeNode(Struct, frozen=True, forbid_unknown_fields=True):
    """What to change of a node; null leaves it as it is. `slots`: by upstream, how many requests it
    works on at once, for those that do not tell; null there: it is learned."""

    name: Annotated[str, Meta(pattern=NODE_NAME)] | None = None
    slots: (
        Annotated[
            dict[
                Annotated[str, Meta(min_length=1, max_length=128)],
                Annotated[int, Meta(ge=1, le=MAX_UPSTREAM_SLOTS)] | None,
            ],
            Meta(max_length=64),
        ]
        | None
    ) = None


class NodeFigures(Struct, frozen=True, kw_only=True):
    """A node's figures of the last seconds; `id` is the node's. `rtt_ms`: the way there and back,
    null where it was not measured."""

    id: str
    tokens_per_s: float
    rtt_ms: float | None


class NodeHistory(Struct, frozen=True, kw_only=True):
    """A node's last hour: a value for each `step_s`, of which the last one was closed at `until`;
    null where the node was away, or nothing is known. `reconnects`: how often it came back in that
    step. `use`: of its busiest GPU in percent, or of its processor if it has none."""

    step_s: float
    until: float
    tokens_per_s: list[float | None]
    slots_busy: list[float | None]
    slots_total: list[float | None]
    reconnects: list[float | None]
    use: list[float | None]


class NodeList(Struct, frozen=True):
    """Every node that has joined."""

    data: tuple[NodeView, ...]
