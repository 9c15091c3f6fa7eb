"""Times as people write them on a command line."""

from __future__ import annotations

import argparse
import datetime
import re
import time
from collections.abc import Callable
from typing import Final

WHEN: Final = "30m, 12h, 7d or 4w ago; or a day or time: 2026-11-23, 2026-11-23T12:00"
_UNITS_S: Final = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN: Final = re.compile(r"([0-9]{1,6})([mhdw])")
_SPANS_SHOWN: Final = ((86400.0, "d"), (3600.0, "h"), (60.0, "m"), (1.0, "s"))


def span_up_to(most: float) -> Callable[[str], float]:
    """Return a parser of `30m`, `24h`, `7d`, `4w` or 0, to seconds, `most` at most."""

    def read(text: str) -> float:
        seconds = 0.0 if text == "0" else _span_s(text)
        if seconds is None or seconds > most:
            shown = span_text(most)
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a time such as 24h, 7d or 4w, or 0; at most {shown}"
            )
        return seconds

    return read


def span_text(seconds: float) -> str:
    """Return a length of time as people write it: `90s`, `1h`, `30d`."""
    for unit_s, unit in _SPANS_SHOWN:
        if seconds >= unit_s and seconds % unit_s == 0:
            return f"{seconds / unit_s:.10g}{unit}"
    return f"{seconds:.10g}s"


def when_utc(text: str) -> int:
    """Parse `7d` ago, or a day or time (in UTC unless it names a zone), to seconds since 1970."""
    return _when(text, datetime.UTC)


def when_here(text: str) -> int:
    """Parse `7d` ago, or a day or time (this machine's unless it names a zone), to seconds since
    1970."""
    return _when(text, None)


def _when(text: str, zone: datetime.tzinfo | None) -> int:
    if (ago_s := _span_s(text)) is not None:
        return max(int(time.time() - ago_s), 0)
    try:
        at = datetime.datetime.fromisoformat(text)
        at = at if at.tzinfo is not None or zone is None else at.replace(tzinfo=zone)
        return max(int(at.timestamp()), 0)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time such as 30m, 12h, 7d, 4w, 2026-11-23 or 2026-11-23T12:00"
        ) from None


def _span_s(text: str) -> float | None:
    matched = _SPAN.fullmatch(text)
    return None if matched is None else float(int(matched[1]) * _UNITS_S[matched[2]])
