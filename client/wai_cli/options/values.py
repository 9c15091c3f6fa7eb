"""Parsers for argument values. On a bad value argparse prints what is expected and exits with 2."""

from __future__ import annotations

import argparse
import datetime
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from wai_api.bounds import MAX_COUNT, MAX_GPUS

from .times import span_text

MAX_KEY_CHARS: Final = 4096  # those in use have up to some hundred
NONE: Final = "none"
"""The value that removes a limit."""
AUTO: Final = "auto"
"""The value that leaves a choice to the node."""


def count(text: str) -> int:
    """Parse a whole number of at least 1."""
    return _whole(text, 1, MAX_COUNT, "a whole number from 1 on")


def whole_or_none(least: int, most: int) -> Callable[[str], int | str]:
    """Return a parser of whole numbers from `least` to `most`, or `none`."""
    bounds = f"from {least} on" if most == MAX_COUNT else f"from {least} to {most}"
    what = f"a whole number {bounds}, or none"
    return lambda text: NONE if text == NONE else _whole(text, least, most, what)


def auto_or_whole(least: int, most: int) -> Callable[[str], int | str]:
    """Return a parser of whole numbers from `least` to `most`, or `auto`."""
    what = f"a whole number from {least} to {most}, or auto"
    return lambda text: AUTO if text == AUTO else _whole(text, least, most, what)


def gpu_numbers(text: str) -> list[int] | str:
    """Parse the numbers of GPUs, such as 0,1, or `auto`."""
    if text == AUTO:
        return AUTO
    what = f"numbers of GPUs from 0 to {MAX_GPUS - 1}, such as 0,1, or auto"
    return [_whole(part.strip(), 0, MAX_GPUS - 1, what) for part in text.split(",")]


def none_or(read: Callable[[str], float]) -> Callable[[str], float | str]:
    """Return a parser of what `read` parses, or `none`."""
    return lambda text: NONE if text == NONE else read(text)


def between(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `least` to `most`."""
    return lambda text: _whole(text, least, most, f"a whole number from {least} to {most}")


def future_or_none(text: str) -> float | str:
    """Parse a future date or time (UTC unless it names a zone) to seconds since 1970, or `none`."""
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
    """Return a parser of hours, more than 0 and at most `most`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value <= most:
            raise _wrong(text, f"a number of hours, more than 0 and at most {most:g}")
        return value

    return read


_UNITS_S: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(least: float, most: float) -> Callable[[str], float]:
    """Return a parser of durations such as 90, 90s, 10m or 2h, to seconds."""
    what = f"a time such as 90s or 10m, from {span_text(least)} to {span_text(most)}"

    def read(text: str) -> float:
        digits = text.rstrip("smhd")
        try:
            value = float(digits) * _UNITS_S[text[len(digits) :]]
        except (ValueError, KeyError):
            value = math.nan
        if not least <= value <= most:  # also refuses nan
            raise _wrong(text, what)
        return value

    return read


def names(text: str) -> list[str]:
    """Parse names with commas between them."""
    return [named(name).strip() for name in text.split(",")]


def named(text: str) -> str:
    """Parse a name or id that is not empty; an empty one is usually an unset variable."""
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


def first_line(path: str) -> str:
    """Read the first line of a file: a key that is an argument itself is no secret."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            return file.readline(MAX_KEY_CHARS).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path} can't be read: {error}") from None
