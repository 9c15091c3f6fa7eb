"""What commands print: JSON for scripts, tables for people."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from wai_transport.plain_text import one_line


def print_json(value: Any) -> None:
    """Print one JSON value; control characters are escaped as JSON escapes them."""
    text = json.dumps(value, indent=2, ensure_ascii=not _prints_everything())
    print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def _prints_everything() -> bool:
    """Whether stdout's encoding has all characters."""
    return (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf16", "utf32")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str) -> None:
    """Print rows below their columns' names, or the text `empty` if there are none."""
    if not rows:
        print(empty)
        return
    lines = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def say(text: str, file: TextIO | None = None) -> None:
    """Print one line. Control characters, which foreign text may contain, are replaced."""
    print(one_line(text), file=file, flush=True)


def print_lines(lines: Sequence[str]) -> None:
    """Print the lines of a foreign log, with control characters replaced."""
    for line in lines:
        print(plain(line))


def plain(text: str) -> str:
    """Return `text` with "?" for control characters, which could change a terminal's state.

    Tabs and ends of lines stay.
    """
    return "".join(c if c.isprintable() or c in "\t\n" else "?" for c in text)


def time_text(seconds: float | None) -> str:
    """Return seconds since 1970 as local time; "" for None."""
    if seconds is None:
        return ""
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    # A node's text must not send control characters to the terminal.
    return "".join(c if c.isprintable() else "?" for c in str(value))
