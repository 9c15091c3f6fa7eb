"""Shorten answers until they fit a REPLY, since a frame holds at most 256 KiB. Pure.

What is least useful is left out: the oldest log lines, the last rows, the log lines of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from wai_protocol.frames import pack
from wai_protocol.limits import MAX_FRAME_BYTES

REPLY_BYTES: Final = MAX_FRAME_BYTES - 1024  # room for the frame's other fields
SHORT_CHARS: Final = 300  # for each reason in a list that is too long; 64 of them always fit


def newest_lines(lines: Sequence[str], limit_bytes: int = REPLY_BYTES) -> list[str]:
    """Return the last `lines` that fit; if some are left out, the first line says how many."""
    size = 0
    for kept, line in enumerate(reversed(lines)):
        size += _size(line)
        if size > limit_bytes - 200:  # room for the note
            left_out = len(lines) - kept
            note = f"({left_out} older lines are left out: an answer holds no more)"
            return [note, *lines[left_out:]]
    return list(lines)


def first_rows(rows: Sequence[Any], limit_bytes: int = REPLY_BYTES) -> list[Any]:
    """Return the first `rows` that fit; rows are ordered best first."""
    size = 0
    for count, row in enumerate(rows):
        size += _size(row)
        if size > limit_bytes:
            return list(rows[:count])
    return list(rows)


def shortened(
    deployments: Sequence[dict[str, Any]], limit_bytes: int = REPLY_BYTES
) -> list[dict[str, Any]]:
    """Return all `deployments`; if they do not fit, without log lines and with short reasons."""
    if sum(map(_size, deployments)) <= limit_bytes:
        return list(deployments)
    return [
        row
        | {"log_tail": []}
        | {name: row[name][:SHORT_CHARS] for name in ("reason", "swap_error")}
        for row in deployments
    ]


def _size(value: Any) -> int:
    return len(pack(value))
