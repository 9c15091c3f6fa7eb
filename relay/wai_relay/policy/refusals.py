"""What a caller is told when no node can serve its request. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from wai_protocol.errors import Fault

from .demands import Demand, Readiness, most_context
from .scoring import Candidate, Score


class Refused(NamedTuple):
    """Why, and in words: the one thing that would have to change. `passing`: it may by itself."""

    fault: Fault
    message: str
    passing: bool = False


def refusal(demand: Demand, candidates: Sequence[Candidate], scores: Sequence[Score]) -> Refused:
    """What is said where none of `candidates`, which got `scores`, can serve `demand`."""
    excluded = {s.excluded for s in scores}
    if demand.pin is not None:
        mine = [s.excluded for s in scores if s.node == demand.pin]
        if not mine:
            text = f"No node named '{demand.pin}' serves the model '{demand.model}'."
            return Refused(Fault.NODE_NOT_FOUND, text)
        excluded = set(mine)
    if not excluded - {"not allowed", "not local", "not pinned"} and excluded:
        return Refused(Fault.FORBIDDEN, "This API key may not use the nodes that serve this model.")
    if not excluded:
        return Refused(Fault.MODEL_NOT_FOUND, f"No node serves the model '{demand.model}'.")
    passing = {"loading", "no slots", *(r.value for r in Readiness)}
    if "context" in excluded and not excluded & passing:
        largest = max(
            most_context(c.model) or 0
            for c, s in zip(candidates, scores, strict=True)
            if s.excluded == "context"
        )
        text = (
            f"This request needs a context of about {demand.least_context} tokens; the largest for"
            f" '{demand.model}' has {largest}: this model's maximum context length is {largest}"
            " tokens. Shorten the prompt or give a node more context."
        )
        return Refused(Fault.CONTEXT_EXCEEDED, text)
    if excluded <= {"other API", "not allowed", "not local", "not pinned"}:
        text = f"No node serves '{demand.model}' through this API; try another of the relay's APIs."
        return Refused(Fault.MODEL_NOT_FOUND, text)
    where = f"The node '{demand.pin}'" if demand.pin else f"Every node for '{demand.model}'"
    why = ", ".join(sorted(excluded & passing))
    return Refused(Fault.NO_NODE, f"{where} is out of service now ({why}).", bool(why))
