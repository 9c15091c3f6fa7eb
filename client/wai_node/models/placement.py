"""Where a model's layers go: on which GPUs, and what stays in RAM. Pure.

What computes fastest comes first: all layers on the fewest GPUs that hold them; then all layers on
GPUs, with the experts of as few layers as possible in RAM, since a token needs only some of them;
then as many layers on GPUs as fit; then RAM alone.

The rules of llama.cpp (`llama_model_base::load_tensors`): the last layers go to GPUs, in the order
of the devices; `--tensor-split` is the number of layers on each; `--n-cpu-moe` counts from the
first layer.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from .hardware import Gpu, Hardware
from .scratch import Scratch
from .space import Space

_HALVINGS: Final = 16  # of the share of each GPU that is filled: to 1/65536


class FitVerdict(enum.Enum):
    """Where a model would run. `PARTIAL`: some of it on GPUs, the rest, slower, in RAM."""

    GPU = "gpu"
    PARTIAL = "partial"
    CPU = "cpu"
    NO = "no"


class Share(msgspec.Struct, frozen=True):
    """So many layers on one GPU: its number on this machine, and its name for the engine."""

    gpu: int
    device: str
    layers: int


class Placement(msgspec.Struct, frozen=True):
    """Where a model's layers are. `shares`: those on GPUs, in the engine's order. `cpu_moe`: so
    many layers, the first ones, have their experts in RAM."""

    shares: tuple[Share, ...] = ()
    cpu_moe: int = 0

    @property
    def gpu_layers(self) -> int:
        """How many layers are on GPUs, the output included."""
        return sum(share.layers for share in self.shares)

    def to_argv(self) -> list[str]:
        """Return llama-server's flags."""
        argv = ["--gpu-layers", str(self.gpu_layers)]
        if self.cpu_moe:
            argv += ["--n-cpu-moe", str(self.cpu_moe)]
        if self.shares and all(share.device for share in self.shares):
            argv += ["--device", ",".join(share.device for share in self.shares)]
            if len(self.shares) > 1:
                layers = ",".join(str(share.layers) for share in self.shares)
                argv += ["--split-mode", "layer", "--tensor-split", layers]
        return argv


class Wanted(msgspec.Struct, frozen=True):
    """What somebody wants of a placement; None: what computes fastest. `gpus`: the numbers of the
    GPUs that may be used, empty: any."""

    gpu_layers: int | None = None
    cpu_moe: int | None = None
    gpus: tuple[int, ...] = ()


ANYWHERE: Final = Wanted()


class Costs(msgspec.Struct, frozen=True):
    """The bytes of a model's parts. `dense` and `experts` are by layer, the last one of them the
    output; each has its part of the cache in `dense`. `scratch`: what computing them takes where
    they are. `beside`: on the first GPU. `embeddings` and `process`: in RAM. `whole`: all of it, in
    RAM."""

    dense: tuple[int, ...]
    experts: tuple[int, ...]
    embeddings: int
    scratch: Scratch
    beside: int
    process: int
    whole: int

    @property
    def every(self) -> int:
        """The number of layers, the output included."""
        return len(self.dense)

    def layer(self, index: int, cpu_moe: int) -> int:
        """What a layer takes where it is."""
        return self.dense[index] + (self.experts[index] if index >= cpu_moe else 0)


def computing(
    placement: Placement | None, scratch: Scratch, *, pipelined: bool | None = None
) -> Space:
    """Return what computing takes, where a model is placed so. `pipelined`: whether the engine has
    the GPUs work on several batches at a time, None: as it does if all layers are on several."""
    if placement is None or not placement.shares:
        return Space(ram=scratch.alone)
    first, moe = scratch.every - placement.gpu_layers, placement.cpu_moe
    if pipelined is None:
        pipelined = _pipelined(first, moe, len(placement.shares))
    gpus = [0] * (1 + max(share.gpu for share in placement.shares))
    at = first
    for share in placement.shares:
        layers = range(at, at + share.layers)
        gpus[share.gpu] = scratch.on_gpu(layers, moe, pipelined=pipelined)
        at += share.layers
    return Space(tuple(gpus), scratch.in_ram(first, moe, gpus=len(placement.shares)))


def space_of(
    placement: Placement | None,
    costs: Costs,
    *,
    unified: bool = False,
    pipelined: bool | None = None,
) -> Space:
    """Return what a model takes that is placed so. Whole on GPUs, what it takes in RAM is pages of
    its file, and does not count. `pipelined`: see `computing`."""
    if placement is None or not placement.shares or unified:
        return Space(ram=costs.whole)
    first, moe = costs.every - placement.gpu_layers, placement.cpu_moe
    taken = computing(placement, costs.scratch, pipelined=pipelined)
    gpus = list(taken.gpus)
    gpus[placement.shares[0].gpu] += costs.beside
    at = first
    for share in placement.shares:
        gpus[share.gpu] += sum(costs.layer(i, moe) for i in range(at, at + share.layers))
        at += share.layers
    experts = sum(costs.experts[first : max(first, moe)])
    if first == 0 and not experts:
        return Space(tuple(gpus))
    ram = sum(costs.layer(i, 0) for i in range(first)) + experts
    return Space(tuple(gpus), costs.embeddings + costs.process + taken.ram + ram)


def _pipelined(first: int, cpu_moe: int, gpus: int) -> bool:
    return gpus > 1 and not first and not cpu_moe


def place(
    costs: Costs, hardware: Hardware, free: Space, wanted: Wanted = ANYWHERE
) -> tuple[FitVerdict, Placement]:
    """Return the best place for a model, and with `wanted` the best such one.

    `free`: what may be taken. If it fits nowhere, `NO`, and what was wanted.
    """
    every = costs.every
    least = costs.scratch.on_gpu(range(every))
    cards = [
        card
        for card in hardware.gpus
        if (not wanted.gpus or card.number in wanted.gpus) and free.on(card.number) > least
    ]
    search = _Search(costs, hardware, free, cards)
    layers = every if wanted.gpu_layers is None else min(wanted.gpu_layers, every)
    moe = 0 if wanted.cpu_moe is None else min(wanted.cpu_moe, every - 1)
    found = search.on_fewest(layers, moe) if layers else None
    if found is None and wanted.cpu_moe is None and any(costs.experts) and layers:
        moe = every - 1
        found = _least(moe, lambda count: search.on_gpus(cards, layers, count))
    if found is None and wanted.gpu_layers is None:
        found = _least(every - 1, lambda fewer: search.on_gpus(cards, every - fewer, moe))
    if found is not None and space_of(found, costs).ram <= max(0, free.ram):
        whole = found.gpu_layers == every and not found.cpu_moe
        return (FitVerdict.GPU if whole else FitVerdict.PARTIAL), found
    if not wanted.gpu_layers and costs.whole <= free.ram:
        return FitVerdict.CPU, Placement()
    return FitVerdict.NO, Placement()


def _least(most: int, tried: Callable[[int], Placement | None]) -> Placement | None:
    """Return what `tried` returns for the least number from 1 to `most` for which it returns
    anything; it does so for each larger one too."""
    low, best = 1, None
    while low <= most:
        middle = (low + most) // 2
        found = tried(middle)
        if found is None:
            low = middle + 1
        else:
            best, most = found, middle - 1
    return best


class _Search:
    """Tries placements of one model on one machine."""

    def __init__(self, costs: Costs, hardware: Hardware, free: Space, cards: list[Gpu]) -> None:
        self._costs, self._free, self._cards = costs, free, cards
        self._unified = hardware.unified_memory

    def on_fewest(self, layers: int, cpu_moe: int) -> Placement | None:
        """Place so many layers on as few GPUs as hold them, of equals on those with most room."""
        roomy = sorted(self._cards, key=lambda card: -self._free.on(card.number))
        for count in range(1, len(roomy) + 1):
            chosen = sorted(roomy[:count], key=self._cards.index)
            found = self.on_gpus(chosen, layers, cpu_moe)
            if found is not None:
                return found
        return None

    def on_gpus(self, cards: Sequence[Gpu], layers: int, cpu_moe: int) -> Placement | None:
        """Place so many layers on these GPUs, each filled alike, whatever RAM the rest needs; None
        if they do not fit."""
        costs = self._costs
        first = costs.every - layers
        if self._unified and (first or cpu_moe):
            return None  # one memory: what the GPU can't hold, the CPU can't either
        sizes = [costs.layer(index, cpu_moe) for index in range(first, costs.every)]
        pipelined = _pipelined(first, cpu_moe, len(cards))
        # Which of these layers a card gets is not known yet: it may be those that take most.
        budgets = [
            self._free.on(card.number)
            - costs.scratch.on_gpu(range(first, costs.every), cpu_moe, pipelined=pipelined)
            for card in cards
        ]
        if not budgets or min(budgets) <= 0:
            return None
        budgets[0] -= costs.beside
        counts = _spread(sizes, budgets)
        if counts is None:
            return None
        shares = tuple(
            Share(card.number, card.device, count)
            for card, count in zip(cards, counts, strict=True)
            if count
        )
        return Placement(shares, cpu_moe)


def _spread(sizes: Sequence[int], budgets: Sequence[int]) -> list[int] | None:
    """Return how many of `sizes`, in order, go to each of `budgets`, all filled to about the same
    share; None if they do not fit."""
    if len(budgets) == 1:
        return [len(sizes)] if sum(sizes) <= budgets[0] else None
    found = _fill(sizes, budgets, 1.0)
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS if found is not None else 0):
        middle = (low + high) / 2
        tried = _fill(sizes, budgets, middle)
        if tried is None:
            low = middle
        else:
            found, high = tried, middle
    return found


def _fill(sizes: Sequence[int], budgets: Sequence[int], share: float) -> list[int] | None:
    """Return how many of `sizes` fill this share of each budget, in order; None if some
    are left."""
    bounds, at = [0], 0
    for budget in budgets:
        left = budget * share
        while at < len(sizes) and sizes[at] <= left:
            left -= sizes[at]
            at += 1
        bounds.append(at)
    return [end - start for start, end in pairwise(bounds)] if at == len(sizes) else None
