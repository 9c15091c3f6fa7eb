"""The commands that the documentation shows: found in blocks and in the text, split into words."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .blocks import Block, blocks, pages

PROGRAMS: Final = ("wai", "make", "curl", "install.sh")
_SHELLS: Final = ("", "sh")
_SPAN: Final = re.compile(r"(?<!`)`((?:wai|make) [^`]+)`(?!`)|`` .*?``", re.DOTALL)
_FENCED: Final = re.compile(r"^ *(`{3,}).*?^ *\1 *$", re.DOTALL | re.MULTILINE)
# Several commands side by side in a line, as a table.
_BESIDE: Final = re.compile(r"\s{2,}(?=wai )")
_BEFORE: Final = (
    (re.compile(r"^docker compose(?: -f \S+)? exec \S+ "), ""),
    (re.compile(r"^docker compose(?: -f \S+)? run (?:--\S+ )*node "), "wai node "),
    (re.compile(r"^docker run .*? wai-node "), "wai node "),
    (re.compile(r"^(?:sudo )?sh install\.sh "), "install.sh "),
    (re.compile(r"^sudo "), ""),
)


@dataclass(frozen=True, slots=True)
class Command:
    """One command: the page and line where its block begins, and its words."""

    place: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.place}: {shlex.join(self.words)}"


def in_blocks() -> list[Command]:
    """Every command of `PROGRAMS` in a block of shell, with all its arguments."""
    return [
        command
        for page in pages()
        for block in blocks(page)
        if block.language in _SHELLS
        for command in _in_block(block)
    ]


def in_help(parser: argparse.ArgumentParser) -> Iterator[Command]:
    """Every command among the examples of `parser`'s help, and of its commands' help."""
    for line in (parser.epilog or "").splitlines():
        shown = re.match(r"  (wai .*?)(?:\s{2,}.*)?$", line)
        for one in re.split(r"\s(?:&&|\|\|?|;)\s", shown[1]) if shown else ():
            words = _words(one)
            if words and words[0] == "wai":
                yield Command(parser.prog, tuple(words))
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from in_help(command)


def in_text() -> list[Command]:
    """Every `wai …` and `make …` in the running text; it may be the beginning of a command only."""
    return [
        Command(f"{page.name}", tuple(_words(span))) for page in pages() for span in _spans(page)
    ]


def _spans(page: Path) -> Iterator[str]:
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    for found in _SPAN.finditer(text):
        if found[1]:
            yield " ".join(found[1].split())


def _in_block(block: Block) -> Iterator[Command]:
    for line in block.text.replace("\\\n", " ").splitlines():
        for part in _BESIDE.split(line.strip()):
            for one in re.split(r"\s(?:&&|\|\|?|;)\s", part):
                words = _words(one)
                if words and words[0] in PROGRAMS:
                    yield Command(str(block), tuple(words))


def _words(line: str) -> list[str]:
    for before, instead in _BEFORE:
        line = before.sub(instead, line)
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a quote that ends in another line, or an apostrophe of prose
        return []
    while words and re.fullmatch(r"[A-Z][A-Z0-9_]*=.*", words[0]):
        words = words[1:]
    return words[: words.index(">")] if ">" in words else words
