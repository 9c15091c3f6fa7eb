"""docs/troubleshooting.md quotes the program: what it quotes is in the source, word for word."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from .blocks import ROOT

PAGE: Final = ROOT / "docs" / "troubleshooting.md"
PACKAGES: Final = ("protocol", "relay", "client")
SCRIPT: Final = ROOT / "relay" / "wai_relay" / "installer" / "install.sh"
# A message in bold, at the beginning of a symptom or between two of them; it may hold code itself.
QUOTED: Final = re.compile(r"\*\*(`+)(.+?)\1\*\*", re.DOTALL)
_PLACES: Final = re.compile(r"%(?:\.\d)?[sdrfg]|\{\d?\}|\$\w+")
_SHORTEST: Final = 8


def quotes() -> list[str]:
    return [" ".join(text.split()) for _, text in QUOTED.findall(PAGE.read_text(encoding="utf-8"))]


def texts_of(tree: ast.AST) -> Iterator[str]:
    """Every text of a module, with `…` for what is filled in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            yield "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def said_by_the_program() -> str:
    said = [SCRIPT.read_text(encoding="utf-8").replace("\\`", "`")]
    for package in PACKAGES:
        for file in sorted((ROOT / package).glob("wai_*/**/*.py")):
            said += texts_of(ast.parse(file.read_text(encoding="utf-8")))
    return "\n".join(" ".join(_PLACES.sub("…", text).split()) for text in said)


def pieces(quote: str) -> list[str]:
    """What stands between the names that are filled in, without the quotes around those."""
    found = (piece.strip(" '\"().,:;`") for piece in quote.split("…"))
    return [piece for piece in found if len(piece) >= _SHORTEST]


def test_a_message_is_quoted_that_the_program_does_not_say() -> None:
    said = said_by_the_program()
    found = quotes()
    assert len(found) > 40
    unsaid = [q for q in found if not pieces(q) or any(p not in said for p in pieces(q))]
    assert unsaid == []


def test_the_source_of_messages_is_not_read_at_all() -> None:
    assert "no such message as this one" not in said_by_the_program()
    assert "this port speaks TLS only: use …" in said_by_the_program()
