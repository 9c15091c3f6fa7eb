"""How busy the nodes' machines are: rows of the live feed."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

MAX_GPUS: Final = 16  # of one node
MAX_PROCESSES: Final = 16
HISTORY_STEPS: Final = 60
HISTORY_STEP_S: Final = 15.0  # as often as a node looks while nobody watches it

Percent = Annotated[float, Meta(ge=0, le=100)]
Bytes = Annotated[int, Meta(ge=0, le=1 << 50)]
Name = Annotated[str, Meta(max_length=256)]
Problem = Annotated[str, Meta(max_length=200)]


class GpuNow(Struct, frozen=True, kw_only=True):
    """One GPU; null is what its driver does not tell. `temperature` in degrees Celsius, `power` in
    watts. `problem`: why it tells nothing."""

    name: Name
    use: Percent | None = None
    used: Bytes | None = None
    total: Bytes | None = None
    temperature: Annotated[float, Meta(ge=0, le=1000)] | None = None
    power: Annotated[float, Meta(ge=0, le=1e5)] | None = None
    power_limit: Annotated[float, Meta(ge=0, le=1e5)] | None = None
    problem: Problem = ""


class ServerNow(Struct, frozen=True, kw_only=True):
    """What the server of a deployed model holds; `gpu` null: the driver does not tell."""

    model: Name
    ram: Bytes | None = None
    gpu: Bytes | None = None


class MachineNow(Struct, frozen=True, kw_only=True):
    """A node's machine at one moment, as the node tells it."""

    ram_used: Bytes | None = None
    ram_total: Bytes | None = None
    cpu: Percent | None = None
    problem: Problem = ""
    gpus: Annotated[tuple[GpuNow, ...], Meta(max_length=MAX_GPUS)] = ()
    processes: Annotated[tuple[ServerNow, ...], Meta(max_length=MAX_PROCESSES)] = ()


class HardwareView(Struct, frozen=True, kw_only=True):
    """A node's machine now; `id` is the node's, `at` when it was told (seconds since 1970).
    `history`: for each 15 s of the last quarter of an hour, the use of its busiest GPU in percent,
    or of its processor if it has none; null where nothing was told."""

    id: str
    at: float
    now: MachineNow
    history: tuple[float | None, ...]
