"""What the documentation's site has beside the files of `docs/`: pages that are written elsewhere.

The README, the protocol and the changelog stay where people look for them in a clone; the
commands' page is made from the program's own help, that of the settings from their definitions.
Links between them are set right; those to other files of the repository are left as text, since
the site has no such pages.
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
_IMAGE = re.compile(r'(<img src=")docs/')  # HTML, which MkDocs leaves as it is
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#]+)(#[^)]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for name, path in WRITTEN_ELSEWHERE.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "commands.md", content=commands()))
    files.append(File.generated(config, "configuration.md", content=configuration()))
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

    return _IMAGE.sub(r"\1", _LINK.sub(set_right, markdown))


def commands() -> str:
    """Return the page of all commands: what each prints with `--help`."""
    from wai_cli.main import GROUPS, parser_for

    pages = ["# Commands", "", "What each command prints with `--help`."]
    for name, parser in _parsers(parser_for(GROUPS)):
        depth = "#" * min(name.count(" ") + 1, 4)
        pages += ["", f"{depth}# `{name}`", "", "```text", parser.format_help().rstrip(), "```"]
    return "\n".join(pages) + "\n"


def configuration() -> str:
    """Return the page of all settings of a relay and a node."""
    from wai_cli.commands.settings import PROGRAMS, settings_of
    from wai_cli.options.reference import tables_of

    pages = [_CONFIGURATION]
    for name, (command, prefix) in PROGRAMS.items():
        pages.append(f"\n## `{command}`\n")
        for table in tables_of(settings_of(name)):
            if table.name:
                heading = f"[[{table.name}]]" if table.several else f"[{table.name}]"
                pages.append(f"\n### `{heading}` of `{command}`\n\n{table.meaning}\n")
            for one in table.settings:
                told = f" = `{one.default}`" if one.default else ", must be given" * one.required
                pages.append(f"\n**`{one.name}`**{told} ({one.kind})  \n{one.meaning}")
            if not table.name:
                pages.append(f"\nAs variables: `{prefix}` and the key in capitals.")
    return "\n".join(pages) + "\n"


_CONFIGURATION = """\
# Configuration

Every setting comes from, in this order of precedence: an option of the command line (those that
`wai relay --help` and `wai node run --help` list), a variable of the environment, the TOML file
that `--config` names, and the default. `wai settings relay` and `wai settings node` print such
a file, with all keys commented out. An unknown key or a wrong value in a file is an error that
names its line; unknown variables are ignored. In a variable a table or a list of tables is
written as TOML writes it after the equals sign: `WAI_RELAY_PROXY='{trusted = ["127.0.0.1"]}'`.
The data folder is `--data`, or `WAI_RELAY_DATA` and `WAI_NODE_DATA`; no file sets it. What an
admin changes while the relay runs is on the dashboard's Settings page, and in
`/admin/v1/settings`.
"""


def _parsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield parser.prog, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _parsers(command)
