"""Events of the live feed, `GET /events`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from .requests import RequestState


class RequestRow(Struct, frozen=True):
    """A running request. What grows with time alone (age, tokens/s) is the reader's to work out.
    `relay`: by which relay it came, "" where there is one alone."""

    id: str
    key_id: str
    key_name: str
    model: str
    node: str
    state: RequestState
    reason: str
    attempts: int
    started_at: float
    queue_ms: float
    ttft_ms: float | None
    prompt_tokens: int
    relay: str = ""


class Difference(Struct, frozen=True, omit_defaults=True):
    """What changed in a set of rows; `tokens` by request."""

    full: bool = False
    set: tuple[Any, ...] = ()
    gone: tuple[str, ...] = ()
    tokens: dict[str, int] = {}


class PulseView(Struct, frozen=True, kw_only=True):
    """Figures of this moment, and of the last hour (`*_hour`; times to first token too)."""

    at: float
    tokens_per_s: float
    running: int
    queued: int
    requests_hour: int
    errors_hour: int
    tokens_hour: int
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None


class PulseHistory(Struct, frozen=True, kw_only=True):
    """Tokens per second and requests running, a value each `step_s`, the last one at `until`."""

    step_s: float
    until: float
    tokens_per_s: list[float]
    running: list[int]


class Changed(Struct, frozen=True):
    """How many changes admins have made since the relay started: look again."""

    count: int


EVENTS: Final[Mapping[str, type[Struct]]] = {
    "nodes": Difference,
    "requests": Difference,
    "deployments": Difference,
    "hardware": Difference,
    "figures": Difference,
    "history": PulseHistory,
    "pulse": PulseView,
    "changed": Changed,
}
"""What each event's data is."""
