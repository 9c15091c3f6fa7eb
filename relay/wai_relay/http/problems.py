"""Encode the JSON body of an error response in OpenAI's format.

The types and codes come from the table in `wai_protocol.errors`.
"""

from __future__ import annotations

import msgspec

from wai_protocol.errors import Fault


def openai_error(fault: Fault, message: str) -> bytes:
    """Return `{"error": {"message", "type", "param": null, "code"}}` for `fault` as UTF-8 JSON."""
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
