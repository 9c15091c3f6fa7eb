"""Estimate how models fit this node, from their headers, its hardware, and corrections from
earlier starts.

The `Supervisor` calls this before it accepts a model or changes a context. This module keeps no
state, and downloads only the headers of model files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio.to_thread
import msgspec

from wai_node.models.catalogue import Quantisation, RemoteFile, Repository, parse_reference
from wai_node.models.draft import Draft
from wai_node.models.estimate import Correction, estimate
from wai_node.models.fit import Fit, best_place, costs_of, fit
from wai_node.models.gguf_file import read_draft, read_layout, read_projector, read_shape
from wai_node.models.hardware import Hardware
from wai_node.models.hub import Hub
from wai_node.models.layout import Layout, layout_by_shape, layout_of
from wai_node.models.load import Load
from wai_node.models.local_files import find_local, is_file_reference
from wai_node.models.placement import FitVerdict, Placement, space_of
from wai_node.models.projector import Projector, choose_projector, projector_of
from wai_node.models.shape import ModelShape, Purpose, shape_from_metadata
from wai_node.models.snapshot import snapshot
from wai_node.models.space import Space
from wai_protocol.errors import RequestError

from .deployment import Wish
from .deployments import Deployments
from .entry import Held, QuantFit
from .load_policy import DEFAULT_POLICY, LoadPolicy
from .occupancy import free_for, free_now, promised
from .options import DEFAULT, ServeOptions
from .policy import ManagedSettings
from .server.model_paths import ModelFiles
from .vllm_appraisal import PREFIX, VllmAppraiser
from .wanted import WantedModel

DEFAULT_CONTEXT: Final = 8192  # what a chat needs
LEAST_DEFAULT_CONTEXT: Final = 2048  # a smaller context is used only if it is asked for
DEFAULT_SLOTS: Final = 2
MAX_PARTS_READ: Final = 64  # of a split file; of one with more the shape must do


NewModel = tuple[
    Repository, Quantisation, int | None, int | None, ServeOptions, LoadPolicy, str | None
]
"""What `Appraiser.new` takes first."""


class Placed(msgspec.Struct, frozen=True):
    """How to run a new model that fits: `placement` is None without a GPU; `needs`: its memory.
    `purpose`: what the model is for. `mmproj`: its projector's path, size and SHA-256."""

    load: Load
    placement: Placement | None
    needs: Space
    purpose: str
    mmproj: tuple[str, int, str] | None
    gpu_share: float | None = None


class Change(msgspec.Struct, frozen=True):
    """A possible change of context. `beside`: both servers fit in memory at the same time, and
    nobody has to make room for it."""

    load: Load
    beside: bool
    placement: Placement | None
    gpu_share: float | None = None


class Appraiser:
    """Combines hub, hardware and the corrections stored in `wanted` into estimates."""

    def __init__(
        self,
        hub: Hub,
        settings: ManagedSettings,
        hardware: Callable[[], Hardware],
        deployments: Deployments,
        vllm: VllmAppraiser,
    ) -> None:
        self._vllm = vllm
        self._hub, self._settings = hub, settings
        self._hardware, self._deployments = hardware, deployments
        self._wanted = deployments.wanted

    async def quantisations(
        self,
        reference: str,
        context_tokens: int | None,
        slots: int | None,
        options: ServeOptions = DEFAULT,
        policy: LoadPolicy = DEFAULT_POLICY,
    ) -> list[QuantFit]:
        """Return how each quantisation of `publisher/name[:QUANT]` fits. Raises `WaiError`."""
        repository, wanted = await self.repository(reference)
        repo = repository.name
        quants = (repository.choose(wanted),) if wanted else repository.quantisations
        if not quants:
            repository.choose(None)  # raises, and says what to do
        if repository.config is not None:
            asked = Load(context_tokens or DEFAULT_CONTEXT, slots or DEFAULT_SLOTS)
            found = await self._vllm.look(repository, quants[0], asked, options)
            return [QuantFit(quants[0].name, quants[0].size_bytes, found)]
        # One header is enough: the quantisations of a repository differ in their weights alone.
        shape = await self.shape(repository, quants[0])
        seeing = seen_by(shape, repository, quants[0], None)
        projector = await self._projector(repository, seeing)
        measured = await anyio.to_thread.run_sync(self._hardware)
        hardware = free_for(self._deployments, measured, policy, "")
        load = options.load(
            shape, context_tokens or DEFAULT_CONTEXT, slots or DEFAULT_SLOTS, projector
        )
        return [
            QuantFit(
                quant.name,
                quant.size_bytes,
                self._fit(repo, shape, quant, load, hardware, options),
            )
            for quant in quants
        ]

    async def repository(self, reference: str) -> tuple[Repository, str | None]:
        """Return the repository that is meant, on the hub or on this machine, and its quantisation
        if it names one. Raises `WaiError`."""
        if is_file_reference(reference):
            folders = self._settings.file_folders
            return await anyio.to_thread.run_sync(find_local, folders, reference), None
        vllm = reference.startswith(PREFIX)
        repo, wanted = parse_reference(reference.removeprefix(PREFIX) if vllm else reference)
        self._settings.check_publisher(repo)
        if vllm:
            return await snapshot(self._hub, repo), wanted
        return await self._hub.repository(repo), wanted

    async def new(
        self,
        repository: Repository,
        quant: Quantisation,
        context_tokens: int | None,
        slots: int | None,
        options: ServeOptions,
        policy: LoadPolicy,
        mmproj: str | None = None,
        draft: Draft | None = None,
    ) -> Placed:
        """Return how to serve a new model.

        `context_tokens` None: choose the largest default that fits. Others make room for it as
        `policy` says. `draft`: its draft model. Raises `WaiError`, also if the model does not fit.
        """
        if repository.config is not None:
            asked = Load(context_tokens or DEFAULT_CONTEXT, slots or DEFAULT_SLOTS)
            least = None if context_tokens else LEAST_DEFAULT_CONTEXT
            alias = repository.name
            load, under = await self._vllm.new(
                *(repository, quant, asked, options),
                lambda measured: free_for(self._deployments, measured, policy, alias),
                least_context=least,
            )
            needs = under.fit.space
            return Placed(load, None, needs, Purpose.CHAT.value, None, under.share)
        shape = await self.shape(repository, quant)
        seeing = seen_by(shape, repository, quant, mmproj)
        projector = await self._projector(repository, seeing)
        load = options.load(
            shape, context_tokens or DEFAULT_CONTEXT, slots or DEFAULT_SLOTS, projector, draft
        )
        measured = await anyio.to_thread.run_sync(self._hardware)
        alias = alias_of(repository, quant)
        hardware = free_for(self._deployments, measured, policy, alias)
        _check_placement(options, hardware, shape)
        layout = await self._layout(repository, quant, shape, hardware)
        found = self._fit(repository.name, shape, quant, load, hardware, options, layout)
        if found.verdict is FitVerdict.NO and not context_tokens:
            largest = found.largest_context
            if largest >= min(LEAST_DEFAULT_CONTEXT, shape.context_trained):
                load = options.load(shape, largest, load.slots, projector, draft)
                found = self._fit(repository.name, shape, quant, load, hardware, options, layout)
        if found.verdict is FitVerdict.NO:
            others = promised(self._deployments, policy, alias)
            kept = f" (with {others} kept for models that are not loaded yet)" if others else ""
            raise RequestError(
                f"{alias} with {load.context_tokens} tokens in {load.slots} slots does not fit "
                f"this node{kept}: {found.reason}{_largest(found)}"
            )
        return Placed(
            load,
            found.placement if hardware.gpus else None,
            found.space,
            shape.purpose.value,
            None if seeing is None else (seeing.path, seeing.size_bytes, seeing.sha256),
        )

    async def change(
        self,
        model: WantedModel,
        files: ModelFiles,
        context_tokens: int,
        slots: int,
        options: ServeOptions,
        served: Wish | None,
    ) -> Change:
        """Return how `model` can be served otherwise; `served` is what runs now.

        Raises `RequestError` if it can't, even after the running server has freed its memory.
        """
        if model.server:
            asked = Load(context_tokens, slots)
            under, beside = await self._vllm.change(
                *(model, files.model.parent, asked, options, served),
                now=lambda measured: free_now(self._deployments, measured),
                after=lambda measured: free_for(
                    self._deployments, measured, model.policy, model.alias
                ),
            )
            return Change(asked, beside, None, under.share)
        wish = Wish(context_tokens, slots, options=options)
        shape, load = await anyio.to_thread.run_sync(read_load, files, wish)
        if load.context_tokens < context_tokens:
            raise RequestError(
                f"{model.alias} was trained for {shape.context_trained} tokens of context; ask for "
                "that or less"
            )
        hardware = await anyio.to_thread.run_sync(self._hardware)
        _check_placement(options, hardware, shape)
        matters = _matters(shape, hardware)
        layout = await layout_of_files(model, files, shape) if matters else None
        known = shape, model.weights_bytes, load
        more = Correction(*model.correction), options.wanted, layout
        found = fit(*known, free_now(self._deployments, hardware), *more)
        after = free_for(self._deployments, hardware, model.policy, model.alias)
        if served is not None:
            held = await self.held_by(model, files, served)
            after = after.with_freed(held.most)
        alone = fit(*known, after, *more)
        if alone.verdict is FitVerdict.NO:
            raise RequestError(
                f"{model.alias} with {load.context_tokens} tokens in {load.slots} slots does not "
                f"fit this node: {alone.reason}{_largest(alone)}"
            )
        at_once = found.verdict is alone.verdict
        if options.gpu_layers is not None and hardware.gpus:  # just as it is wanted, or not at all
            at_once = found.verdict is not FitVerdict.NO
        chosen = found if at_once else alone
        return Change(load, at_once, chosen.placement if hardware.gpus else None)

    async def place(self, model: WantedModel, files: ModelFiles, wish: Wish) -> Placement | None:
        """Return where a server's layers go that is to be started: where it is best now, and where
        they were if it fits nowhere, or what is wanted is not there. Raises `WaiError`."""
        hardware = await anyio.to_thread.run_sync(self._hardware)
        if model.server or not hardware.gpus:
            return wish.placement
        shape, load = await anyio.to_thread.run_sync(read_load, files, wish)
        try:
            _check_placement(wish.options, hardware, shape)
        except RequestError:
            return wish.placement  # the start says what is missing
        layout = await layout_of_files(model, files, shape) if _matters(shape, hardware) else None
        free = free_for(self._deployments, hardware, model.policy, model.alias)
        more = Correction(*model.correction), wish.options.wanted, layout
        found = best_place(shape, model.weights_bytes, load, free, *more)
        return wish.placement if found is None else found

    async def held_by(self, model: WantedModel, files: ModelFiles, wish: Wish) -> Held:
        """Return what a server takes in memory that serves `model` by `wish`. Raises `WaiError`."""
        if model.server:
            return Held(await self._vllm.space(wish))
        shape, load = await anyio.to_thread.run_sync(read_load, files, wish)
        correction = Correction(*model.correction)
        found = estimate(shape, model.weights_bytes, load, correction)
        hardware = await anyio.to_thread.run_sync(self._hardware)
        matters = _matters(shape, hardware)
        layout = await layout_of_files(model, files, shape) if matters else None
        layout = layout or layout_by_shape(shape, model.weights_bytes)
        costs = costs_of(shape, model.weights_bytes, layout, load, correction)
        placement = wish.placement if hardware.gpus else None
        most = space_of(placement, costs, unified=hardware.unified_memory)
        return Held(most, max(0, most.ram - (found.high - found.low)))

    async def shape(self, repository: Repository, quant: Quantisation) -> ModelShape:
        """Return what a model's header says of it. Raises `WaiError`."""
        if repository.folder is not None:
            file = repository.folder / quant.files[0].path
            return await anyio.to_thread.run_sync(read_shape, file)
        return shape_from_metadata(await self._hub.metadata(repository, quant.files[0]))

    async def _layout(
        self, repository: Repository, quant: Quantisation, shape: ModelShape, hardware: Hardware
    ) -> Layout | None:
        """Return how a new model's weights are spread, where that matters: its tensors' sizes.

        They are after the vocabulary, so that some MiB are read of the hub.
        """
        if not _matters(shape, hardware) or len(quant.files) > MAX_PARTS_READ:
            return None
        if repository.folder is not None:
            paths = [repository.folder / file.path for file in quant.files]
            return await anyio.to_thread.run_sync(read_layout, paths, shape)
        headers = [await self._hub.header(repository, file) for file in quant.files]
        return layout_of((t for header in headers for t in header.tensors), shape.blocks)

    async def _projector(self, repository: Repository, file: RemoteFile | None) -> Projector | None:
        if file is None:
            return None
        return projector_of(await self._hub.metadata(repository, file), file.size_bytes)

    def _fit(
        self,
        repo: str,
        shape: ModelShape,
        quant: Quantisation,
        load: Load,
        hardware: Hardware,
        options: ServeOptions,
        layout: Layout | None = None,
    ) -> Fit:
        known = [m.correction for m in self._wanted.models.values() if m.repo == repo]
        correction = Correction(*known[-1]) if known else Correction()
        size = quant.size_bytes
        return fit(shape, size, load, hardware, correction, options.wanted, layout)


def seen_by(
    shape: ModelShape, repository: Repository, quant: Quantisation, mmproj: str | None
) -> RemoteFile | None:
    """Return the projector by which a model sees images. Raises `RequestError`."""
    if shape.purpose is not Purpose.CHAT and mmproj is None:
        return None
    return choose_projector(repository.projectors, mmproj, quant.files[0])


def alias_of(repository: Repository, quant: Quantisation) -> str:
    """Return the name by which callers ask for a model."""
    return f"{repository.name}:{quant.name}" if repository.folder is None else repository.name


def reference_to(model: WantedModel) -> str | None:
    """Return the name by which a model is found on the hub; None for files of this machine."""
    if model.local is not None:
        return None
    return f"{PREFIX}{model.repo}" if model.server else f"{model.repo}:{model.quant}"


def read_load(files: ModelFiles, wish: Wish) -> tuple[ModelShape, Load]:
    """Read the shape of a model, and what its memory depends on if it is served by `wish`.
    Blocking. Raises `RequestError` if a file can't be read."""
    shape = read_shape(files.model)
    seeing, draft = read_projector(files.projector), read_draft(files.draft)
    return shape, wish.options.load(shape, wish.context_tokens, wish.slots, seeing, draft)


async def layout_of_files(
    model: WantedModel, files: ModelFiles, shape: ModelShape
) -> Layout | None:
    """Return how the weights of a model's files are spread, its adapter's included; None if that
    can't be told. Raises `RequestError` if a file can't be read."""
    layout = await anyio.to_thread.run_sync(read_layout, files.parts, shape)
    added = 0 if model.lora is None else model.lora.size_bytes
    return None if layout is None else layout.plus(added)


def _matters(shape: ModelShape, hardware: Hardware) -> bool:
    """Whether it matters how large each layer is: they may be spread."""
    many = len(hardware.gpus) > 1 or bool(shape.expert_count)
    return bool(hardware.gpus) and many and not hardware.unified_memory


def _check_placement(options: ServeOptions, hardware: Hardware, shape: ModelShape) -> None:
    """Raise `RequestError` for what this machine or this model does not have."""
    if not hardware.gpus and (options.gpu_layers or options.cpu_moe or options.gpus):
        raise RequestError(
            "this node has no GPU that its engine can use: leave the GPUs, their layers and the"
            " experts in RAM at auto"
        )
    there = {card.number: card for card in hardware.gpus}
    if missing := [number for number in options.gpus if number not in there]:
        have = ", ".join(f"{number} ({card.name})" for number, card in there.items())
        raise RequestError(
            f"this node has no GPU {missing[0]} that its engine can use; it has {have}"
        )
    if options.gpus and not all(there[number].device for number in options.gpus):
        raise RequestError(
            "this node's engine does not tell which GPUs it has, so that none can be chosen;"
            " leave the GPUs at auto, or install another engine"
        )
    if options.cpu_moe and not shape.expert_count:
        raise RequestError("this model has no experts that could stay in RAM: leave them at auto")


def _largest(found: Fit) -> str:
    """Return a hint that names the largest context that fits, or ""."""
    largest = found.largest_context
    return f"; the largest context here is {largest}" if largest else ""
