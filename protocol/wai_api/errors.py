"""Every answer that is not a success."""

from __future__ import annotations

from msgspec import Struct


class ErrorDetail(Struct, frozen=True):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorAnswer(Struct, frozen=True):
    """Every answer that is not a success."""

    error: ErrorDetail
