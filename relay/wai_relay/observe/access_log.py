"""A line in the log for each request: what was asked of whom, and how it went. No prompt, no key.

A `Recorder` that writes and hands on. Names that a caller chose are shown so that they can't forge
a line.
"""

from __future__ import annotations

import logging
from typing import Final

from wai_relay.contracts.records import Recorder, RequestRecord

MAX_SHOWN_CHARS: Final = 128  # of a path or a model's name, which may be a caller's whole page

log = logging.getLogger("wai.access")


class AccessLog:
    """Logs each finished request, and hands it to the `following` recorder."""

    def __init__(self, following: Recorder) -> None:
        self._following = following

    def finish(self, record: RequestRecord) -> None:
        """See `Recorder`."""
        self._following.finish(record)
        if not log.isEnabledFor(logging.INFO):
            return
        fields = {
            "request_id": record.request_id,
            "address": record.address,
            "method": record.method,
            "path": _shown(record.path),
            "status": record.status,
            "key_id": record.key_id,
            "model": _shown(record.model),
            "node": record.node,
            "fault": record.fault,
            "translated": record.translated,
            "attempts": record.attempts,
            "first_byte_ms": (
                None if record.first_byte_ms is None else round(record.first_byte_ms, 1)
            ),
            "ttft_ms": None if record.ttft_ms is None else round(record.ttft_ms, 1),
            "duration_ms": round(record.duration_ms, 1),
            "prompt_tokens": record.tokens.prompt,
            "completion_tokens": record.tokens.completion,
            "cancelled": record.cancelled,
        }
        line = " ".join(
            f"{name}={value}" for name, value in fields.items() if value not in ("", None)
        )
        # Without `info`'s search for the calling line, which nobody shows: a quarter of its cost.
        log.handle(
            log.makeRecord(
                *(log.name, logging.INFO, "", 0, "%s", (line,), None), extra={"fields": fields}
            )
        )


def _shown(text: str) -> str:
    """`text` on one line, without spaces, in ASCII."""
    return ascii(text[:MAX_SHOWN_CHARS])[1:-1].replace(" ", r"\x20")
