"""What the documentation's site has beside the files of `docs/`: pages that are written elsewhere.

The README, the protocol and the changelog stay where people look for them in a clone; the commands'
page is made from the program's own help. Links between them are set right; those to other files of
the repository are left as text, since the site has no such pages.
"""

from __future__ import annotations

import argparse
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
WRITTEN_ELSEWHERE = {
    "index.md": "README.md",
    "protocol.md": "protocol/SPEC.md",
    "changelog.md": "CHANGELOG.md",
}
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#]+)(#[^)]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for name, path in WRITTEN_ELSEWHERE.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "commands.md", content=commands()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to pages of the site."""
    del config
    name = page.file.src_uri
    here = WRITTEN_ELSEWHERE.get(name, f"docs/{name}")
    pages = {path: site for site, path in WRITTEN_ELSEWHERE.items()}

    def set_right(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        if (ROOT / path).is_dir():
            path += "/README.md"
        site = pages.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(site) is None:
            return text
        return f"[{text}]({posixpath.relpath(site, posixpath.dirname(name) or '.')}{anchor})"

    return _LINK.sub(set_right, markdown)


def commands() -> str:
    """Return the page of all commands: what each prints with `--help`."""
    from wai_cli.main import GROUPS, parser_for

    pages = ["# Commands", "", "What each command prints with `--help`."]
    for name, parser in _parsers(parser_for(GROUPS)):
        depth = "#" * min(name.count(" ") + 1, 4)
        pages += ["", f"{depth}# `{name}`", "", "```text", parser.format_help().rstrip(), "```"]
    return "\n".join(pages) + "\n"


def _parsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield parser.prog, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _parsers(command)
