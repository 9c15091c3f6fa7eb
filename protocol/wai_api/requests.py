"""Requests: those that run now, those that are over, and why one went where it went."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, get_args

from msgspec import Struct

from .patterns import one_of

State = Literal["queued", "prefill", "streaming"]
RequestState: TypeAlias = Annotated[str, one_of(*get_args(State))]


class LiveView(Struct, frozen=True):
    """A running request as it is now. `age_ms` is since its arrival; `ttft_ms` and `tokens_per_s`
    are None before the first token; tokens are estimates until the upstream says them. `relay`: by
    which relay it came, "" where there is one alone."""

    id: str
    key_id: str
    method: str
    path: str
    model: str
    node: str
    state: RequestState
    reason: str
    attempts: int
    started_at: float
    age_ms: float
    queue_ms: float
    ttft_ms: float | None
    prompt_tokens: int
    completion_tokens: int
    tokens_per_s: float | None
    relay: str = ""


class RequestList(Struct, frozen=True):
    """The requests that run now, oldest first. `key_names`: what their keys are called."""

    data: list[LiveView]
    key_names: dict[str, str]


class FinishedRequest(Struct, frozen=True, kw_only=True):
    """A request that is over. `number` is its place in the store, by which the next page is asked
    for. `status` is what the caller was sent, 499 where it went away first; `fault` the code of
    what went wrong on our side, "" if nothing did. Times in ms since its arrival, null where that
    point was not reached. `relay`: by which relay it came, "" where there is one alone."""

    number: int
    id: str
    started_at: float
    path: str
    key_id: str
    model: str
    served_model: str
    node: str
    status: int
    fault: str
    reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    tokens_exact: bool
    queue_ms: float
    ttft_ms: float | None
    duration_ms: float
    tokens_per_s: float | None
    bytes_in: int
    bytes_out: int
    attempts: int
    stream: bool
    cancelled: bool
    fallback: bool
    continued: int
    cost: float
    relay: str = ""


class FinishedList(Struct, frozen=True):
    """Requests that are over, the latest first. `key_names`: what their keys are called. `next`:
    what to give as `before` for the next page, null at the end."""

    data: list[FinishedRequest]
    key_names: dict[str, str]
    next: int | None


class LoadView(Struct, frozen=True):
    """A load that a request waited for. `room_ms`: until there was room for it; `made_room`: the
    models that were unloaded for that."""

    load_ms: int
    room_ms: int
    made_room: tuple[str, ...]


class ExplainedAttempt(Struct, frozen=True):
    """One upstream that was tried. `candidates`: all that were weighed, with the figures that the
    choice was made by. `fault`: the code of what went wrong with it, "" if it answered. `load`: the
    model was loaded there first, which is known once the answer is over."""

    node: str
    model: str
    reason: str
    queue_ms: float
    fault: str
    candidates: list[dict[str, Any]]
    load: LoadView | None = None


class Explanation(Struct, frozen=True):
    """A request's way. `running`: it is not over yet, so that its figures still grow. Times in ms
    since its arrival, None where that point was not reached. Of one that ended before the relay
    was started, the attempts are not known."""

    id: str
    started_at: float
    running: bool
    method: str
    path: str
    key_id: str
    model: str
    served_model: str
    node: str
    status: int
    fault: str
    reason: str
    cancelled: bool
    fallback: bool
    continued: int
    queue_ms: float
    first_byte_ms: float | None
    ttft_ms: float | None
    duration_ms: float
    tokens_per_s: float | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    tokens_exact: bool
    attempts: list[ExplainedAttempt]
    translated: str = ""
    """The upstream's route to which it was translated; "relay" where no upstream was asked; "" if
    it was not, or that is forgotten."""
    relay: str = ""
    """By which relay it came; "" where there is one alone."""
    captured: bool = False
    """Whether its prompt and its answer can be looked at."""
