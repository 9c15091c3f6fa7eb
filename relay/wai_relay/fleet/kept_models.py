"""Models that an earlier run of a node served, while the next one has not found them yet. Pure.

A box that was restarted has its node back within seconds and its inference server, with a large
model to load, within minutes. In between its callers shall hear "not now", not "no such model".
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from wai_protocol.status import MAX_MODELS, ModelStatus, NodeStatus

KEPT_S: Final = 600.0  # as long as a large model may load from a slow disk


class KeptModels:
    """Of one node. `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._models: dict[str, ModelStatus] = {}
        self._until = 0.0

    def begin(self, before: NodeStatus, now: float) -> None:
        """Another run of the node begins; `before` is what the one before it had said."""
        self._models = {
            model.id: replace(model, ready=False, slots_busy=0, queued=0) for model in before.models
        }
        self._until = now + KEPT_S

    def merged(self, told: NodeStatus, now: float) -> NodeStatus:
        """What this run says, and the models it has not had yet. One that it had and has no more is
        not kept: that was its own doing."""
        if not self._models:
            return told
        if now >= self._until:
            self._models.clear()
        for model in told.models:
            self._models.pop(model.id, None)
        return replace(told, models=(*told.models, *self._models.values())[:MAX_MODELS])

    @property
    def until(self) -> float | None:
        """When those that are kept are let go; None while there are none."""
        return self._until if self._models else None
