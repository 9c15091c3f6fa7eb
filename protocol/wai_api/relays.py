"""The relays that share one database, and with it one fleet."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Struct

from .feed import PulseHistory, PulseView
from .nodes import NodeFigures
from .patterns import one_of
from .requests import LiveView

RelayState: TypeAlias = Annotated[str, one_of("ready", "drained", "silent", "lost")]


class RelayView(Struct, frozen=True, kw_only=True):
    """One relay. `url` is where nodes reach it. `this`: the one that answers. `state` drained:
    callers shall go elsewhere; silent: no sign of life came for `silent_s` seconds; lost: it is
    taken for dead. `pin`: SHA-256 of the public key of the certificate that it shows, in hex, null
    where a proxy shows one. `started_at` is seconds since 1970."""

    id: str
    name: str
    url: str
    version: str
    state: RelayState
    this: bool
    started_at: float
    silent_s: float
    pin: str | None = None


class RelayList(Struct, frozen=True):
    """Every relay of the fleet; one that has its database for itself is alone in it."""

    data: tuple[RelayView, ...]


class RelayLive(Struct, frozen=True, kw_only=True):
    """What one relay alone knows of this moment, for the others. `ttft_bins`: how many of the last
    hour's requests fell into each bin of times to first token. `history`: if it was asked for."""

    requests: list[LiveView]
    pulse: PulseView
    ttft_bins: dict[int, int]
    figures: list[NodeFigures]
    history: PulseHistory | None = None
