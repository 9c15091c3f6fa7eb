"""A line in the log for each request: what was asked of whom, and how it went. No prompt, no key.

A `Recorder` that writes and hands on. Names that a caller chose are shown so that they can't forge
a line.
"""

from __future__ import annotations

from typing import Any

from wai_relay.contracts.records import Recorder, RequestRecord
from wai_transport.access_lines import AccessLines, shown


class AccessLog:
    """Logs each finished request, and hands it to the `following` recorder."""

    def __init__(self, following: Recorder) -> None:
        self._following = following
        self._lines = AccessLines()

    def finish(self, record: RequestRecord) -> None:
        """See `Recorder`."""
        self._following.finish(record)
        self._lines.add(RequestLine(record))

    def close(self) -> None:
        """Write the lines that wait."""
        self._lines.close()


class RequestLine:
    """The line of one request. What is empty or not known is left out of its text."""

    __slots__ = ("_record",)

    def __init__(self, record: RequestRecord) -> None:
        self._record = record

    def text(self) -> str:
        """See `Entry`."""
        r = self._record
        return (
            f"request_id={r.request_id}"
            f"{f' address={r.address}' if r.address else ''}"
            f" method={r.method} path={shown(r.path)} status={r.status}"
            f"{f' key_id={r.key_id}' if r.key_id else ''}"
            f"{f' model={shown(r.model)}' if r.model else ''}"
            f"{f' node={r.node}' if r.node else ''}"
            f"{f' fault={r.fault}' if r.fault else ''}"
            f"{f' translated={r.translated}' if r.translated else ''}"
            f" attempts={r.attempts}"
            f"{'' if r.first_byte_ms is None else f' first_byte_ms={r.first_byte_ms:.1f}'}"
            f"{'' if r.ttft_ms is None else f' ttft_ms={r.ttft_ms:.1f}'}"
            f" duration_ms={r.duration_ms:.1f} prompt_tokens={r.tokens.prompt}"
            f" completion_tokens={r.tokens.completion} cancelled={r.cancelled}"
        )

    def fields(self) -> dict[str, Any]:
        """See `Entry`."""
        r = self._record
        return {
            "request_id": r.request_id,
            "address": r.address,
            "method": r.method,
            "path": shown(r.path),
            "status": r.status,
            "key_id": r.key_id,
            "model": shown(r.model),
            "node": r.node,
            "fault": r.fault,
            "translated": r.translated,
            "attempts": r.attempts,
            "first_byte_ms": None if r.first_byte_ms is None else round(r.first_byte_ms, 1),
            "ttft_ms": None if r.ttft_ms is None else round(r.ttft_ms, 1),
            "duration_ms": round(r.duration_ms, 1),
            "prompt_tokens": r.tokens.prompt,
            "completion_tokens": r.tokens.completion,
            "cancelled": r.cancelled,
        }
