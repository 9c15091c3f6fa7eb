"""Escape text from other machines, so that it cannot control a terminal or forge lines of a log.

Node names, model ids and texts of upstreams come from other machines. Logs and terminal output pass
through here as their last step, so that other code need not escape anything.
"""

from __future__ import annotations


def one_line(text: str) -> str:
    r"""Return `text` with escapes (`\n`, `\x1b`, `\u202e`) for characters that are not
    printable."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def shortened(text: str, most_chars: int) -> str:
    """Return `text`, or its beginning and "…", so that it has at most `most_chars`."""
    return text if len(text) <= most_chars else text[: most_chars - 1] + "…"


def lines(text: str, indent: str) -> str:
    """Escape each line of `text` (a traceback) and put `indent` before it.

    The indent keeps a line from looking like a log message of its own.
    """
    return "\n".join(indent + one_line(line) for line in text.split("\n"))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
