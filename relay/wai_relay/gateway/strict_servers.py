"""Which servers refuse fields that the relay adds to requests. Pure.

A server that checks its input answers 400 or 422 to `stream_options`, which its caller never sent.
The first request finds that out: it is sent once more without our fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

FORGOTTEN_AFTER_S: Final = 3600.0
"""A server that was upgraded may take them. One request in an hour is sent twice."""

MAX_KNOWN: Final = 4096  # servers; each is a model on a node

_STATUSES: Final = frozenset({400, 422})
# How servers name the field, or speak of one: pydantic, Go's and Rust's decoders, JSON schemas.
_FIELD: Final = re.compile(
    rb"stream_options|include_usage|timings_per_token|extra|additional propert"
    rb"|un(?:known|expected|recogni[sz]ed|supported)|not (?:permitted|allowed|supported)",
    re.I,
)


def refuses_a_field(status: int, body: bytes) -> bool:
    """Whether a server may have refused a request for a field that it does not know."""
    return status in _STATUSES and (not body.strip() or _FIELD.search(body) is not None)


class StrictServers:
    """Remembers them for a while, each by its node and its model."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: dict[tuple[str, str], float] = {}

    def note(self, node: str, model: str) -> None:
        """`model` on `node` took a request only without our fields."""
        self._until.pop((node, model), None)
        if len(self._until) >= MAX_KNOWN:
            del self._until[next(iter(self._until))]
        self._until[node, model] = self._clock() + FORGOTTEN_AFTER_S

    def knows(self, node: str, model: str) -> bool:
        """Whether `model` on `node` refused them lately."""
        if not self._until:  # nearly always
            return False
        until = self._until.get((node, model))
        if until is not None and until <= self._clock():
            del self._until[node, model]
            until = None
        return until is not None
