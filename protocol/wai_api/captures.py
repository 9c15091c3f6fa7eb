"""Captured requests: prompts and answers of one key, for a limited time, and their replay."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

MIN_CAPTURE_S: Final = 10.0
MAX_CAPTURE_S: Final = 3600.0  # whoever needs longer turns it on again, and is asked again by that


class StartCapture(Struct, frozen=True, forbid_unknown_fields=True):
    """Capture a key's requests for `for_s` seconds from now."""

    for_s: Annotated[float, Meta(ge=MIN_CAPTURE_S, le=MAX_CAPTURE_S)] = 600.0


class CaptureView(Struct, frozen=True, kw_only=True):
    """A key whose requests are captured, with their prompts and answers, until `until`. `requests`
    and `size_bytes`: what is in the relay's memory now."""

    key_id: str
    key_name: str
    until: float
    requests: int
    size_bytes: int


class CaptureList(Struct, frozen=True):
    """All keys whose requests are captured."""

    data: tuple[CaptureView, ...]


class CapturedRequest(Struct, frozen=True, kw_only=True):
    """A request's prompt and answer, as the caller sent and got them: bodies only, never a header.
    What is no UTF-8 is replaced. `prompt_cut`, `answer_cut`: there was more than is kept."""

    id: str
    key_id: str
    path: str
    model: str
    node: str
    status: int
    prompt: str
    prompt_cut: bool
    answer: str
    answer_cut: bool


class ReplayRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Where to send a captured request again: null leaves the choice as it was."""

    node: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    model: Annotated[str, Meta(min_length=1, max_length=256)] | None = None


class ReplayView(Struct, frozen=True, kw_only=True):
    """What a captured request got this time. `id`: by which it is explained; it counts for no key.
    Times in ms; null where that point was not reached."""

    id: str
    model: str
    node: str
    status: int
    fault: str
    answer: str
    answer_cut: bool
    ttft_ms: float | None
    duration_ms: float
    prompt_tokens: int
    completion_tokens: int
