"""Deployed models that have failed: no node lists them, and a call for one is told why. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from wai_protocol.errors import NodeUnavailable
from wai_protocol.status import FAILED_MODELS
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.contracts.upstream import ServingNode

MAX_REASON_CHARS: Final = 300


def failure_of(
    model: str, key: ApiKey, pin: str | None, nodes: Iterable[ServingNode]
) -> NodeUnavailable | None:
    """Return what to tell `key` that asks for `model`, if a node that it may use tells that the
    model has failed there."""
    allowed = key.limits.nodes
    for node in nodes:
        if (allowed and node.name not in allowed) or pin not in (None, node.name):
            continue
        told = node.status.detail.get(FAILED_MODELS)
        reason = told.get(model) if isinstance(told, dict) else None
        if isinstance(reason, str):
            return NodeUnavailable(
                f"The model '{model}' is deployed on the node '{node.name}', but it failed there:"
                f" {reason[:MAX_REASON_CHARS]}"
            )
    return None
