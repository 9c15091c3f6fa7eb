"""Messages about problems."""

from __future__ import annotations

from msgspec import Struct


class NotifyResult(Struct, frozen=True):
    """How a test went. `receiver`: its kind and its server; `error`: "" if it took the message."""

    receiver: str
    error: str


class NotifyResults(Struct, frozen=True):
    """A result for each receiver that is configured."""

    data: tuple[NotifyResult, ...]
