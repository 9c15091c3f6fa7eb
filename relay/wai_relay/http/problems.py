"""The JSON error body of a refusal, in OpenAI's format: what a caller of the edge reads.

The table in `wai_protocol.errors` says what a fault is called; this file only puts it into words
that an SDK can parse. It chooses no status and sends nothing.
"""

from __future__ import annotations

import msgspec

from wai_protocol.errors import Fault


def openai_error(fault: Fault, message: str) -> bytes:
    """`{"error": {"message", "type", "param": null, "code"}}` for `fault`, as UTF-8 JSON."""
    row = fault.row
    return msgspec.json.encode(
        {
            "error": {
                "message": message,
                "type": row.openai_type,
                "param": None,
                "code": row.openai_code,
            }
        }
    )
