"""The code blocks of the documentation, so that tests can run what it shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
_FENCE: Final = re.compile(r"^ *(`{3,})(\w*) *$")
_INDENT: Final = "    "
_ITEM: Final = re.compile(r"^(\s*)(?:[-*]|\d+\.) ")


@dataclass(frozen=True, slots=True)
class Block:
    """One code block: where it begins, its language ("" where none is named), and its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """What people read: README, CONTRIBUTING, SECURITY and all of docs/."""
    names = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
    return [*(ROOT / name for name in names), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced and the indented code blocks of a page, from its top to its end."""
    lines = page.read_text(encoding="utf-8").splitlines()
    number, inner = 0, 0  # `inner`: how far the text of the list item around is indented
    while number < len(lines):
        line = lines[number]
        start, fence = number, _FENCE.match(line)
        if fence is not None:
            number += 1
            while number < len(lines) and lines[number].strip() != fence[1]:
                number += 1
            yield Block(page, start + 2, fence[2], "\n".join(lines[start + 1 : number]) + "\n")
        elif item := _ITEM.match(line):
            inner = len(item[0])
        elif line and not line.startswith(" "):
            inner = 0
        elif _is_code(line, inner) and (start == 0 or not lines[start - 1].strip()):
            while number < len(lines) and (
                not lines[number].strip() or _is_code(lines[number], inner)
            ):
                number += 1
            text = "\n".join(one[inner + len(_INDENT) :] for one in lines[start:number])
            yield Block(page, start + 1, "", text.rstrip("\n") + "\n")
            continue
        number += 1


def the_block(page: str, language: str, *, holding: str = "") -> str:
    """The one block of docs/`page` in this language that has `holding` in it."""
    found = [
        block.text
        for block in blocks(ROOT / "docs" / page)
        if block.language == language and holding in block.text
    ]
    assert len(found) == 1, f"docs/{page} has {len(found)} such blocks"
    return found[0]


def _is_code(line: str, inner: int) -> bool:
    return bool(line.strip()) and line.startswith(" " * inner + _INDENT)
