"""Which nodes get the replicas of a model: those that it fits best, and why not the others. Pure.

Best is where it runs fastest as far as that is known before it runs: on the GPU, then partly, then
in RAM; of equals where it has the most room, told by the largest context; then where fewer models
are deployed. A node that has it already comes first, so that the same command may be repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from wai_api.models import DeploymentView, NodeFit, PlacedView, QuantFitView

_FASTEST_FIRST: Final = ("gpu", "partial", "cpu")
_WHERE: Final = {"gpu": "on the GPU", "partial": "partly on the GPU", "cpu": "in RAM"}
_FILE: Final = ".gguf"  # a file on the nodes has no other quantisation
_USUAL: Final = ("Q4_K_M", "Q4_0", "Q8_0")  # which a node takes where none is named


class Choice(NamedTuple):
    """A node, and why it stands where it does."""

    node: str
    reason: str


class Ranking(NamedTuple):
    """`model`: with the quantisation, the same on all. `best`: where it fits, the best first."""

    model: str
    best: tuple[Choice, ...]
    left_out: tuple[PlacedView, ...]


def rank(fits: Sequence[NodeFit], deployed: Iterable[DeploymentView], model: str) -> Ranking:
    """Rank the nodes that were asked how `model` fits; `deployed` is what nodes serve already."""
    is_open = ":" not in model and not model.lower().endswith(_FILE)
    quant = _usual(fits) if is_open else None
    exact = f"{model}:{quant}" if quant else model
    served = list(deployed)
    left_out: list[PlacedView] = []
    found: list[tuple[tuple[bool, int, int, int, str], Choice]] = []
    for fit in fits:
        row = next((q for q in fit.quants if quant is None or q.quant == quant), None)
        mine = [view for view in served if view.node == fit.node]
        has_it = any(view.model == exact for view in mine)
        if row is None or (row.verdict not in _FASTEST_FIRST and not has_it):
            why = fit.error or (f"{quant} is not to be had there" if row is None else row.reason)
            left_out.append(PlacedView(node=fit.node, outcome="left_out", reason=why))
            continue
        speed = len(_FASTEST_FIRST)
        if row.verdict in _FASTEST_FIRST:
            speed = _FASTEST_FIRST.index(row.verdict)
        key = (not has_it, speed, -row.largest_context, len(mine), fit.node)
        found.append((key, Choice(fit.node, _reason(row, has_it=has_it))))
    return Ranking(exact, tuple(choice for _, choice in sorted(found)), tuple(left_out))


def _reason(row: QuantFitView, *, has_it: bool) -> str:
    if has_it:
        return "it is deployed there already"
    return f"it fits {_WHERE[row.verdict]}, with up to {row.largest_context} tokens of context"


def _usual(fits: Sequence[NodeFit]) -> str | None:
    """The quantisation that nodes take where none is named."""
    sizes = {row.quant: row.size_bytes for fit in fits for row in fit.quants}
    for quant in _USUAL:
        if quant in sizes:
            return quant
    return min(sizes, key=lambda name: sizes[name], default=None)
