"""Times as people write them on a command line."""

from __future__ import annotations

import argparse
import datetime
import re
from typing import Final

from wai_protocol.errors import RequestError

WHEN: Final = "7d, 12h or 4w ago; or a day or time: 2026-11-23, 2026-11-23T12:00"
_UNITS_S: Final = {"h": 3600, "d": 86400, "w": 7 * 86400}
_AGO: Final = re.compile(r"(\d{1,6})([hdw])")


def span_of(text: str) -> float:
    """`24h`, `7d`, `4w` or 0 as seconds. Raises `ArgumentTypeError`."""
    if text == "0":
        return 0.0
    if matched := _AGO.fullmatch(text):
        return float(int(matched[1]) * _UNITS_S[matched[2]])
    raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 24h, 7d or 4w, or 0")


def seconds_of(text: str, now: float) -> int:
    """`7d` ago or a day or time in UTC, as seconds since 1970. Raises `RequestError`."""
    if matched := _AGO.fullmatch(text):
        return max(int(now) - int(matched[1]) * _UNITS_S[matched[2]], 0)
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise RequestError(
            f"{text!r} is no time: write 7d, 12h, 4w, 2026-11-23 or 2026-11-23T12:00"
        ) from None
    at = at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC)
    return max(int(at.timestamp()), 0)
