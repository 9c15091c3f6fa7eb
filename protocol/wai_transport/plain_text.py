"""Text of somebody else's as a log or a terminal may show it: it forges no line and steers nothing.

Node names, model ids and what upstreams say come from other machines. Everything that is shown goes
through here at its last step, so that no caller has to think of it.
"""

from __future__ import annotations


def one_line(text: str) -> str:
    r"""`text` with escapes (`\n`, `\x1b`, `\u202e`) for whatever is not printable."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def lines(text: str, indent: str) -> str:
    """Several lines of ours (a traceback), each after `indent`, so that none looks like another
    message's."""
    return "\n".join(indent + one_line(line) for line in text.split("\n"))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
