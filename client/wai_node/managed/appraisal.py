"""How models fit this node: by their headers, its hardware now, and what earlier starts taught.

It decides nothing and keeps nothing; it downloads no more than a header. The `Supervisor` asks it
before it takes a model or changes a context.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio.to_thread

from wai_node.models.catalogue import Quantisation, Repository, parse_reference
from wai_node.models.fit import Correction, Fit, FitVerdict, Load, estimate, fit
from wai_node.models.hardware import Hardware
from wai_node.models.hub import Hub
from wai_node.models.shape import ModelShape, shape_from_metadata
from wai_protocol.errors import RequestError

from .deployment import Wish
from .entry import QuantFit, load_for, read_shape
from .wanted import Wanted, WantedModel

DEFAULT_CONTEXT: Final = 8192  # what a chat needs
LEAST_DEFAULT_CONTEXT: Final = 2048  # below that nobody is served who did not ask for it
DEFAULT_SLOTS: Final = 2


@dataclass(frozen=True, slots=True)
class Placed:
    """A new model that fits: `gpu_layers` (None on a box without a GPU), and the most it takes."""

    load: Load
    gpu_layers: int | None
    high_bytes: int


@dataclass(frozen=True, slots=True)
class Change:
    """A change of context that is possible. `beside`: while the old server still runs."""

    load: Load
    beside: bool
    gpu_layers: int | None


class Appraiser:
    """Asks the hub and the hardware. `wanted` holds what was learnt of models seen before."""

    def __init__(self, hub: Hub, hardware: Callable[[], Hardware], wanted: Wanted) -> None:
        self._hub, self._hardware, self._wanted = hub, hardware, wanted

    async def quantisations(
        self, reference: str, context_tokens: int | None, slots: int | None
    ) -> list[QuantFit]:
        """How each quantisation of `publisher/name[:QUANT]` fits. Raises `WaiError`."""
        repo, wanted = parse_reference(reference)
        repository = await self._hub.repository(repo)
        quants = (repository.choose(wanted),) if wanted else repository.quantisations
        if not quants:
            repository.choose(None)  # raises, and says what to do
        # one header tells for all: quantisations of a repository differ in weights alone
        shape = await self._shape(repository, quants[0])
        hardware = await anyio.to_thread.run_sync(self._hardware)
        load = load_for(shape, context_tokens or DEFAULT_CONTEXT, slots or DEFAULT_SLOTS)
        return [
            QuantFit(quant.name, quant.size_bytes, self._fit(repo, shape, quant, load, hardware))
            for quant in quants
        ]

    async def new(
        self,
        repository: Repository,
        quant: Quantisation,
        context_tokens: int | None,
        slots: int | None,
        pending_bytes: int,
    ) -> Placed:
        """How a new model is to be served; without a wish for its context, with one that fits.
        Those that are deployed and not loaded yet will take `pending_bytes`.

        Raises `WaiError`, also where it does not fit.
        """
        shape = await self._shape(repository, quant)
        load = load_for(shape, context_tokens or DEFAULT_CONTEXT, slots or DEFAULT_SLOTS)
        hardware = (await anyio.to_thread.run_sync(self._hardware)).with_taken(pending_bytes)
        found = self._fit(repository.name, shape, quant, load, hardware)
        if found.verdict is FitVerdict.NO and not context_tokens:
            largest = found.largest_context
            if largest >= min(LEAST_DEFAULT_CONTEXT, shape.context_trained):
                load = load_for(shape, largest, load.slots)
                found = self._fit(repository.name, shape, quant, load, hardware)
        if found.verdict is FitVerdict.NO:
            others = f" (beside {pending_bytes >> 20} MiB for those on their way)"
            raise RequestError(
                f"{repository.name}:{quant.name} with {load.context_tokens} tokens in {load.slots} "
                f"slots does not fit this node{others if pending_bytes else ''}: "
                f"{found.reason}{_largest(found)}"
            )
        return Placed(load, found.gpu_layers if hardware.gpus else None, found.high_bytes)

    async def change(
        self,
        model: WantedModel,
        file: Path,
        context_tokens: int,
        slots: int,
        served: Wish | None,
    ) -> Change:
        """Whether `model` can be served with another context; `served` is what runs now.

        Raises `RequestError` where it can't, not even with the memory that `served` frees.
        """
        shape = await anyio.to_thread.run_sync(read_shape, file)
        load = load_for(shape, context_tokens, slots)
        if load.context_tokens < context_tokens:
            raise RequestError(
                f"{model.alias} was trained for {shape.context_trained} tokens of context; ask for "
                "that or less"
            )
        hardware = await anyio.to_thread.run_sync(self._hardware)
        correction = Correction(*model.correction)
        found = fit(shape, model.size_bytes, load, hardware, correction)
        after = hardware
        if served is not None:
            freed = load_for(shape, served.context_tokens, served.slots)
            after = hardware.with_freed(estimate(shape, model.size_bytes, freed, correction).high)
        alone = fit(shape, model.size_bytes, load, after, correction)
        if alone.verdict is FitVerdict.NO:
            raise RequestError(
                f"{model.alias} with {load.context_tokens} tokens in {load.slots} slots does not "
                f"fit this node: {alone.reason}{_largest(alone)}"
            )
        beside = found.verdict is (FitVerdict.GPU if hardware.gpus else FitVerdict.CPU)
        layers = (found if beside else alone).gpu_layers if hardware.gpus else None
        return Change(load, beside, layers)

    async def _shape(self, repository: Repository, quant: Quantisation) -> ModelShape:
        return shape_from_metadata(await self._hub.metadata(repository, quant.files[0]))

    def _fit(
        self, repo: str, shape: ModelShape, quant: Quantisation, load: Load, hardware: Hardware
    ) -> Fit:
        known = [m.correction for m in self._wanted.models.values() if m.repo == repo]
        correction = Correction(*known[-1]) if known else Correction()
        return fit(shape, quant.size_bytes, load, hardware, correction)


def _largest(found: Fit) -> str:
    """What to ask for instead, where there is something."""
    largest = found.largest_context
    return f"; the largest context here is {largest}" if largest else ""
