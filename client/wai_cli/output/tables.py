"""What commands print: JSON for scripts, tables for people."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any, TextIO

from wai_transport.plain_text import one_line


def print_json(value: Any) -> None:
    """Print one JSON value; what would steer a terminal is escaped in JSON's way."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str) -> None:
    """Print rows below their columns' names; `empty` where there is none."""
    if not rows:
        print(empty)
        return
    lines = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def say(text: str, file: TextIO | None = None) -> None:
    """Print one line. Whatever it holds of a node's or a relay's own words steers no terminal."""
    print(one_line(text), file=file, flush=True)


def print_lines(lines: Sequence[str]) -> None:
    """Print a log of somebody else's: nothing in it steers the terminal."""
    for line in lines:
        print(plain(line))


def plain(text: str) -> str:
    """`text` with "?" for whatever steers a terminal: what a node says may be anything. Tabs and
    ends of lines stay."""
    return "".join(c if c.isprintable() or c in "\t\n" else "?" for c in text)


def time_text(seconds: float | None) -> str:
    """Seconds since 1970 as local time; "" for None."""
    if seconds is None:
        return ""
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    # What a node says of itself must not steer the terminal of whoever lists it.
    return "".join(c if c.isprintable() else "?" for c in str(value))
