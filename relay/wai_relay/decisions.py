"""The last decisions and why they were made, for `wai explain REQUEST_ID`. Bounded; no prompts."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

from .scheduler import Placement
from .selection import Decision

# About a kilobyte each with four nodes; at ten requests a second the last ten minutes but a bit.
MAX_DECISIONS: Final = 4096

_Kept = tuple[str, str, float, Decision]  # model, node, seconds waited


class DecisionLog:
    """Request id to what was decided; a request that was tried again has several decisions."""

    __slots__ = ("_decisions",)

    def __init__(self) -> None:
        self._decisions: OrderedDict[str, list[_Kept]] = OrderedDict()

    def add(self, request_id: str, model: str, placement: Placement) -> None:
        """Remember where a request went."""
        self._decisions.setdefault(request_id, []).append(
            (model, placement.node, placement.waited_s, placement.decision)
        )
        if len(self._decisions) > MAX_DECISIONS:
            self._decisions.popitem(last=False)

    def explain(self, request_id: str) -> list[dict[str, Any]] | None:
        """One entry per attempt, in a form fit for JSON; None if the request is not remembered."""
        found = self._decisions.get(request_id)
        if found is None:
            return None
        return [_entry(*kept) for kept in found]


def _entry(model: str, node: str, waited_s: float, decision: Decision) -> dict[str, Any]:
    return {
        "model": model,
        "node": node,
        "reason": str(decision.reason),
        "waited_ms": round(waited_s * 1000, 1),
        "candidates": [
            {
                "node": score.node,
                "excluded": score.excluded,
                "expected_first_token_ms": round(score.total_s * 1000, 1),
                "wait_ms": round(score.wait_s * 1000, 1),
                "prefill_ms": round(score.prefill_s * 1000, 1),
                "network_ms": round(score.rtt_s * 1000, 1),
                "cost_ms": round(score.cost_s * 1000, 1),
                "warm_tokens": score.warm_tokens,
                "free_slots": score.free,
            }
            for score in decision.scores
        ],
    }
