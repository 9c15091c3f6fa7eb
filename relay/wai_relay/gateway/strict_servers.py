"""Which servers refuse fields that the relay adds to requests. Pure.

A server that checks its input answers 400 or 422 to `stream_options`, which its caller never sent.
The first request finds that out: it is sent once more without our fields. This is remembered of
each node and model (`lately`).
"""

from __future__ import annotations

import re
from typing import Final

FORGOTTEN_AFTER_S: Final = 3600.0
"""A server that was upgraded may take them. One request in an hour is sent twice."""

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
