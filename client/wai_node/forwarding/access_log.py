"""A line in the node's log for each stream: whose request it was at the relay, and how it went.

The same logger and fields as the relay's, so that one query finds a request in both logs by its
`request_id`. What came from the relay is shown so that it can't forge a line. No prompt, no key.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from wai_protocol.surface import Headers

REQUEST_ID: Final = b"x-request-id"
MAX_SHOWN_CHARS: Final = 128

log = logging.getLogger("wai.access")


class StreamLine:
    """What is known of one stream so far; `write` it when the stream is over."""

    __slots__ = (
        "_begun_at",
        "_method",
        "_model",
        "_path",
        "_request_id",
        "_upstream",
        "cancelled",
        "fault",
    )

    def __init__(
        self, method: str, target: str, headers: Headers, model: str, upstream: str
    ) -> None:
        self._begun_at = time.monotonic()
        self._request_id = next((value for name, value in headers if name == REQUEST_ID), b"")
        self._method = method
        self._path = target.partition("?")[0]
        self._model = model
        self._upstream = upstream
        self.fault = ""
        """The error code of what went wrong here or at the upstream."""
        self.cancelled = False
        """Whether the relay gave it up."""

    def write(self, status: int) -> None:
        """It is over. `status` is the upstream's, 0 where none came."""
        if not log.isEnabledFor(logging.INFO):
            return
        fields = {
            "request_id": _shown(self._request_id.decode("latin-1")),
            "method": self._method,
            "path": self._path,
            "status": status,
            "model": _shown(self._model),
            "upstream": self._upstream,
            "fault": self.fault,
            "duration_ms": round((time.monotonic() - self._begun_at) * 1000.0, 1),
            "cancelled": self.cancelled,
        }
        line = " ".join(f"{name}={value}" for name, value in fields.items() if value != "")
        log.info("%s", line, extra={"fields": fields})


def _shown(text: str) -> str:
    """`text` on one line, without spaces, in ASCII."""
    return ascii(text[:MAX_SHOWN_CHARS])[1:-1].replace(" ", r"\x20")
