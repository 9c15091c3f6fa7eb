"""What a relay may ask of this node's managed models, and in which words (SPEC section 6).

CALLs `model.*` are checked here and handed to the supervisor; what it answers becomes plain maps.
Every refusal is a `WaiError` that a person at the relay reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from wai_protocol.errors import Fault, RequestError, WaiError

from .entry import DeploymentStatus, Event, QuantFit
from .supervisor import Supervisor

EVENT: Final = "deployment"
PROGRESS_EVERY_S: Final = 0.25
"""Of one download's progress: what a progress bar can show."""

MAX_REASON_CHARS: Final = 2000


class Search(msgspec.Struct, forbid_unknown_fields=True):
    """`model.search`: GGUF repositories on the hub."""

    query: str
    limit: int = 20


class FitCall(msgspec.Struct, forbid_unknown_fields=True):
    """`model.fit`: how the quantisations of `model` (publisher/name[:QUANT]) fit."""

    model: str
    context: int | None = None
    slots: int | None = None


class Deploy(msgspec.Struct, forbid_unknown_fields=True):
    """`model.deploy`: serve `model` from now on."""

    model: str
    context: int | None = None
    slots: int | None = None
    idle_unload_s: float | None = None


class ListCall(msgspec.Struct, forbid_unknown_fields=True):
    """`model.list`: what is deployed."""


class Remove(msgspec.Struct, forbid_unknown_fields=True):
    """`model.remove`: serve `model` no more."""

    model: str


class SetContext(msgspec.Struct, forbid_unknown_fields=True):
    """`model.context`: serve `model` with another context."""

    model: str
    context: int
    slots: int | None = None


class Logs(msgspec.Struct, forbid_unknown_fields=True):
    """`model.logs`: the last lines that its server printed."""

    model: str
    lines: int = 100


CALLS: Final[dict[str, type[msgspec.Struct]]] = {
    "model.search": Search,
    "model.fit": FitCall,
    "model.deploy": Deploy,
    "model.list": ListCall,
    "model.remove": Remove,
    "model.context": SetContext,
    "model.logs": Logs,
}


class ModelCalls:
    """Answers CALLs. `answer` is an `agent.CallHandler`."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def answer(
        self, method: str, params: dict[str, Any], tell: Callable[[str, Any], None]
    ) -> Any:
        """The value of the REPLY. Raises `WaiError`."""
        kind = CALLS.get(method)
        if kind is None:
            raise WaiError(f"this node answers no `{method}`; update it", Fault.ROUTE_REFUSED)
        try:
            asked = msgspec.convert(params, kind)
        except msgspec.ValidationError as error:
            raise RequestError(f"{method}: {error}") from error
        return await self._do(asked)

    async def _do(self, asked: msgspec.Struct) -> Any:
        supervisor = self._supervisor
        match asked:
            case Search(query, limit):
                found = await supervisor.search(query, max(1, min(limit, 50)))
                return [msgspec.to_builtins(model) for model in found]
            case FitCall(model, context, slots):
                return [_fit(quant) for quant in await supervisor.fit(model, context, slots)]
            case Deploy(model, context, slots, idle_unload_s):
                return {"model": await supervisor.deploy(model, context, slots, idle_unload_s)}
            case Remove(model):
                await supervisor.remove(model)
            case SetContext(model, context, slots):
                await supervisor.set_context(model, context, slots)
            case Logs(model, lines):
                return await supervisor.logs(model, lines)
        return [deployment_map(status) for status in supervisor.deployed()]


class ProgressGate:
    """Lets an event through: every change of state, and progress no more often than it is seen."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told_at: dict[str, float] = {}

    def passes(self, event: Event) -> bool:
        """Whether this one is to be told."""
        alias, now = event.status.alias, self._clock()
        if event.name == "state":
            self._told_at.pop(alias, None)
            return True
        if now - self._told_at.get(alias, -PROGRESS_EVERY_S) < PROGRESS_EVERY_S:
            return False
        self._told_at[alias] = now
        return True


def deployment_map(status: DeploymentStatus) -> dict[str, Any]:
    """A deployment as it goes over the wire."""
    progress = status.progress
    return {
        "model": status.alias,
        "state": status.state.value,
        "reason": status.reason[:MAX_REASON_CHARS],
        "log_tail": [line[:500] for line in status.log_tail],
        "swap_error": status.swap_error[:MAX_REASON_CHARS],
        "context": status.context_tokens,
        "context_served": status.context_served,
        "slots": status.slots,
        "size_bytes": status.size_bytes,
        "in_flight": status.in_flight,
        "progress": None
        if progress is None
        else {
            "done_bytes": progress.done_bytes,
            "total_bytes": progress.total_bytes,
            "rate_bps": progress.rate_bps,
            "eta_s": progress.eta_s,
        },
    }


def _fit(quant: QuantFit) -> dict[str, Any]:
    fit = quant.fit
    return {
        "quant": quant.quant,
        "size_bytes": quant.size_bytes,
        "verdict": fit.verdict.value,
        "low_bytes": fit.low_bytes,
        "high_bytes": fit.high_bytes,
        "largest_context": fit.largest_context,
        "gpu_layers": fit.gpu_layers,
        "reason": fit.reason,
    }
