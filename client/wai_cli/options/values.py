"""What arguments may be: each reads one, or says what would do (argparse shows that, status 2)."""

from __future__ import annotations

import argparse
import datetime
import math
import time
from collections.abc import Callable
from typing import Final

from wai_api.bounds import MAX_COUNT

NONE: Final = "none"
"""How a limit is taken away."""


def count(text: str) -> int:
    """A whole number from 1 on."""
    return _whole(text, 1, MAX_COUNT, "a whole number from 1 on")


def whole_or_none(least: int, most: int) -> Callable[[str], int | str]:
    """A whole number in these bounds, or `none`."""
    bounds = f"from {least} on" if most == MAX_COUNT else f"from {least} to {most}"
    what = f"a whole number {bounds}, or none"
    return lambda text: NONE if text == NONE else _whole(text, least, most, what)


def between(least: int, most: int) -> Callable[[str], int]:
    """A whole number in these bounds."""
    return lambda text: _whole(text, least, most, f"a whole number from {least} to {most}")


def future_or_none(text: str) -> float | str:
    """A day or a time that is still to come, UTC where it does not say, in seconds since 1970."""
    if text == NONE:
        return NONE
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise _wrong(text, "a date such as 2027-01-31 or 2027-01-31T12:00, or none") from None
    seconds = (at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC)).timestamp()
    if seconds <= time.time():
        raise _wrong(text, "a date that is still to come")
    return seconds


def hours(most: float) -> Callable[[str], float]:
    """Hours, more than 0."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value <= most:
            raise _wrong(text, f"a number of hours, more than 0 and at most {most:g}")
        return value

    return read


def seconds(least: float, most: float) -> Callable[[str], float]:
    """Seconds in these bounds."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:  # nan is not
            raise _wrong(text, f"a number of seconds from {least:g} to {most:g}")
        return value

    return read


def named(text: str) -> str:
    """Something: an id or a name that is empty is a script's variable that was not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; write a name or an id")
    return text


def _whole(text: str, least: int, most: int, what: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise _wrong(text, what) from None
    if not least <= value <= most:
        raise _wrong(text, what)
    return value


def _wrong(text: str, what: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text!r} is not {what}")
