"""How models fit this node under vLLM: what `appraisal` does for llama-server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio.to_thread

from wai_node.models.catalogue import Quantisation, Repository
from wai_node.models.fit import GPU_HIGH_BYTES, Fit
from wai_node.models.hardware import Hardware
from wai_node.models.load import Load
from wai_node.models.model_config import ModelConfig
from wai_node.models.snapshot import weights_bytes
from wai_node.models.space import NOTHING, Space
from wai_node.models.vllm_fit import VllmFit, fit_vllm
from wai_protocol.errors import RequestError

from .deployment import Wish
from .options import ServeOptions
from .server.vllm import EIGHT_BIT, read_config_file
from .wanted import WantedModel

PREFIX: Final = "vllm:"


class VllmAppraiser:
    """Compares a model's config with the first GPU."""

    def __init__(self, hardware: Callable[[], Hardware]) -> None:
        self._hardware = hardware

    async def look(
        self, repository: Repository, quant: Quantisation, load: Load, options: ServeOptions
    ) -> Fit:
        """Return how a repository fits."""
        hardware = await anyio.to_thread.run_sync(self._hardware)
        return _fit(_config(repository), _weights(quant), load, options, hardware).fit

    async def new(
        self,
        repository: Repository,
        quant: Quantisation,
        wanted: Load,
        options: ServeOptions,
        beside: Callable[[Hardware], Hardware],
        *,
        least_context: int | None,
    ) -> tuple[Load, VllmFit]:
        """Return how to serve a new model. `beside`: the machine as it can have it.
        `least_context`: it may have less than is wanted, but not less than this. Raises
        `RequestError` if it does not fit."""
        config, weights = _config(repository), _weights(quant)
        hardware = beside(await anyio.to_thread.run_sync(self._hardware))
        load = Load(min(wanted.context_tokens, config.context_trained), wanted.slots)
        found = _fit(config, weights, load, options, hardware)
        largest = found.fit.largest_context
        if found.share is None and least_context is not None and largest >= least_context:
            load = Load(largest, load.slots)
            found = _fit(config, weights, load, options, hardware)
        _check(repository.name, load, found)
        return load, found

    async def change(
        self,
        model: WantedModel,
        folder: Path,
        wanted: Load,
        options: ServeOptions,
        served: Wish | None,
        *,
        now: Callable[[Hardware], Hardware],
        after: Callable[[Hardware], Hardware],
    ) -> tuple[VllmFit, bool]:
        """Return how to serve a model otherwise, and whether beside what runs now. `now`, `after`:
        the machine as it is, and as it is once others have made room."""
        config = await anyio.to_thread.run_sync(read_config_file, folder)
        if wanted.context_tokens > config.context_trained:
            raise RequestError(
                f"{model.alias} was trained for {config.context_trained} tokens of context; ask for"
                " that or less"
            )
        weights = weights_bytes(model.paths, model.sizes)
        hardware = await anyio.to_thread.run_sync(self._hardware)
        beside = _fit(config, weights, wanted, options, now(hardware))
        if beside.share is not None:
            return beside, True
        hardware = after(hardware)
        if served is not None:
            freed = _fit(
                config, weights, Load(served.context_tokens, served.slots), served.options, hardware
            )
            hardware = hardware.with_freed(freed.fit.space)
        alone = _fit(config, weights, wanted, options, hardware)
        _check(model.alias, wanted, alone)
        return alone, False

    async def space(self, wish: Wish) -> Space:
        """Return what a server takes of the first GPU: its share holds all that it allocates."""
        hardware = await anyio.to_thread.run_sync(self._hardware)
        total = hardware.gpus[0].total_bytes if hardware.gpus else 0
        taken = max(0, int((wish.gpu_share or 0.0) * total) - GPU_HIGH_BYTES)
        return Space((taken,)) if taken else NOTHING


def _config(repository: Repository) -> ModelConfig:
    assert repository.config is not None
    return repository.config


def _weights(quant: Quantisation) -> int:
    files = quant.files
    return weights_bytes(tuple(f.path for f in files), tuple(f.size_bytes for f in files))


def _fit(
    config: ModelConfig, weights: int, load: Load, options: ServeOptions, hardware: Hardware
) -> VllmFit:
    eight_bit = options.cache_type == EIGHT_BIT
    context = min(load.context_tokens, config.context_trained)
    return fit_vllm(config, weights, context, load.slots, hardware, eight_bit=eight_bit)


def _check(name: str, load: Load, found: VllmFit) -> None:
    if found.share is None:
        largest = found.fit.largest_context
        hint = f"; the largest context here is {largest}" if largest else ""
        raise RequestError(
            f"{name} with {load.context_tokens} tokens in {load.slots} slots does not fit this node"
            f" under vLLM: {found.fit.reason}{hint}"
        )
