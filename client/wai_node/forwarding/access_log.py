"""A line in the node's log for each stream: whose request it was at the relay, and how it went.

The same logger and fields as the relay's, so that one query finds a request in both logs by its
`request_id`. What came from the relay is shown so that it can't forge a line. No prompt, no key.
"""

from __future__ import annotations

import time
from typing import Any, Final

from wai_protocol.surface import Headers
from wai_transport.access_lines import AccessLines, shown

REQUEST_ID: Final = b"x-request-id"


class StreamLine:
    """What is known of one stream so far; `write` it when the stream is over."""

    __slots__ = (
        "_begun_at",
        "_duration_ms",
        "_lines",
        "_method",
        "_model",
        "_path",
        "_request_id",
        "_status",
        "_upstream",
        "cancelled",
        "fault",
    )

    def __init__(
        self,
        lines: AccessLines,
        method: str,
        target: str,
        headers: Headers,
        model: str,
        upstream: str,
    ) -> None:
        self._lines = lines
        self._begun_at = time.monotonic()
        self._request_id = b""
        for name, value in headers:
            if name == REQUEST_ID:
                self._request_id = value
                break
        self._method = method
        self._path = target.partition("?")[0]
        self._model = model
        self._upstream = upstream
        self._status = 0
        self._duration_ms = 0.0
        self.fault = ""
        """The error code of what went wrong here or at the upstream."""
        self.cancelled = False
        """Whether the relay gave it up."""

    def write(self, status: int) -> None:
        """It is over. `status` is the upstream's, 0 where none came."""
        self._status = status
        self._duration_ms = (time.monotonic() - self._begun_at) * 1000.0
        self._lines.add(self)

    def text(self) -> str:
        """See `Entry`."""
        request_id, model = self._shown_request_id(), shown(self._model)
        return (
            f"{f'request_id={request_id} ' if request_id else ''}"
            f"method={self._method} path={self._path} status={self._status}"
            f"{f' model={model}' if model else ''} upstream={self._upstream}"
            f"{f' fault={self.fault}' if self.fault else ''}"
            f" duration_ms={self._duration_ms:.1f} cancelled={self.cancelled}"
        )

    def fields(self) -> dict[str, Any]:
        """See `Entry`."""
        return {
            "request_id": self._shown_request_id(),
            "method": self._method,
            "path": self._path,
            "status": self._status,
            "model": shown(self._model),
            "upstream": self._upstream,
            "fault": self.fault,
            "duration_ms": round(self._duration_ms, 1),
            "cancelled": self.cancelled,
        }

    def _shown_request_id(self) -> str:
        # Each is another one: to remember it, as `shown` does, would only push others out.
        return shown.__wrapped__(self._request_id.decode("latin-1"))
