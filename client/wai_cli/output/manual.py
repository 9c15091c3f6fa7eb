"""Write manual pages (man) of all commands and of the settings files, from what their help says.

The pages are in the macros of man(7), which every `man` reads: part 1 has a page for each command,
part 5 one for each settings file. Nothing here knows a command or a setting by name.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator, Mapping, Sequence

from wai_cli.options.reference import Table, hole


def manual_pages(
    parser: argparse.ArgumentParser,
    settings: Mapping[str, tuple[str, Sequence[Table]]],
    version: str,
    day: datetime.date,
    home: str,
) -> dict[str, str]:
    """Return the pages by their paths below a folder of manual pages, as `man1/wai-key.1`.

    `settings`: by the name of a settings file, the command that reads it, and its tables. `home`:
    the folder that is written as `~`, since the pages are for every user.
    """
    made = f'"{day:%Y-%m-%d}" "wai {version}"'
    groups = _commands(parser)
    pages = {
        "man1/wai.1": [
            f'.TH "WAI" "1" {made}',
            *_command(parser),
            *_see([*(f"wai-{name}(1)" for name in groups), *(f"{name}(5)" for name in settings)]),
        ]
    }
    for name, group in groups.items():
        files = [f"{file}(5)" for file, (command, _) in settings.items() if name in command.split()]
        pages[f"man1/wai-{name}.1"] = [
            f'.TH "WAI-{name.upper()}" "1" {made}',
            *_command(group),
            *_see(["wai(1)", *files]),
        ]
    for file, (command, tables) in settings.items():
        pages[f"man5/{file}.5"] = [
            f'.TH "{file.upper()}" "5" {made}',
            *_settings(file, command, tables),
            *_see([f"{'-'.join(command.split()[:2])}(1)"]),
        ]
    return {
        name: ("\n".join(lines) + "\n").replace(f"{_text(home)}/", "~/")
        for name, lines in pages.items()
    }


def _command(parser: argparse.ArgumentParser) -> Iterator[str]:
    """All of a command's page but its title and its last section."""
    summary = (parser.description or "").rstrip(".")
    yield from _name(parser.prog.replace(" ", "-"), summary[:1].lower() + summary[1:])
    yield from (".SH SYNOPSIS", *_literal(_usage(parser)))
    yield from (".SH DESCRIPTION", _text(parser.description or ""))
    commands, is_top = _commands(parser), " " not in parser.prog
    if described := list(_options(parser)):
        yield from (".SH OPTIONS", *described)
    if commands:
        yield ".SH COMMANDS"
    for name, command in commands.items():
        if is_top:
            yield from (".TP", f"\\fB{_text(f'wai {name}')}\\fR", _text(_summary(parser, name)))
        else:
            yield from _action(command, _summary(parser, name))
    if parser.epilog:
        yield from (".SH EXAMPLES", *_literal(parser.epilog))


def _action(parser: argparse.ArgumentParser, summary: str) -> Iterator[str]:
    """An action of a command, and those below it (`wai node engine install`)."""
    yield f'.SS "{_text(parser.prog)}"'
    yield from _literal(_usage(parser))
    yield from (".PP", _text(summary[:1].upper() + summary[1:] + "."))
    yield from _options(parser)
    if parser.epilog:
        yield from (".PP", *_literal(parser.epilog))
    for name, inner in _commands(parser).items():
        yield from _action(inner, _summary(parser, name))


def _settings(file: str, command: str, tables: Sequence[Table]) -> Iterator[str]:
    """All of a settings file's page but its title and its last section."""
    yield from _name(file, f"settings of {command}")
    yield ".SH DESCRIPTION"
    yield _text(
        f"A file in TOML, which `{command}` reads with --config. Every key may be left out, unless"
        " its table is there and it has no default. Options and variables of the environment come"
        " first."
    )
    for table in tables:
        shown = f"[[{table.name}]]" if table.several else f"[{table.name}]"
        yield f'.SH "{_text(shown)}"' if table.name else ".SH KEYS"
        if table.meaning:
            yield _text(table.meaning)
        for one in table.settings:
            value = f"{one.name} = {one.default or hole(one)}"
            yield from (".TP", f"\\fB{_text(value)}\\fR", _text(f"{one.meaning} ({one.kind})"))


def _name(name: str, summary: str) -> tuple[str, ...]:
    return (".SH NAME", f"{_text(name)} \\- {_text(summary)}")


def _see(pages: Sequence[str]) -> Iterator[str]:
    yield ".SH SEE ALSO"
    for number, page in enumerate(pages):
        name, part = page.rstrip(")").split("(")
        comma = "," if number < len(pages) - 1 else ""
        yield f".BR {_text(name)} ({part}){comma}"


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every argument and option, with its help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or action.dest == "help":
            continue
        names = ", ".join(action.option_strings)
        value = action.metavar if action.nargs != 0 else None
        shown = " ".join(part for part in (names, str(value or "")) if part) or action.dest
        told = (action.help or "") % {"default": action.default, "prog": parser.prog}
        yield from (".TP", f"\\fB{_text(shown)}\\fR", _text(told))


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _summary(parser: argparse.ArgumentParser, name: str) -> str:
    """What a command's help says of one of its actions."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return next(one.help or "" for one in action._choices_actions if one.dest == name)
    raise KeyError(name)


def _usage(parser: argparse.ArgumentParser) -> str:
    lines = parser.format_usage().splitlines()
    return "\n".join(line[len("usage: ") :] for line in lines)


def _literal(text: str) -> list[str]:
    """Lines as they are, in the type of a terminal."""
    return [".nf", *(_text(line, leads=True) for line in text.strip("\n").splitlines()), ".fi"]


def _text(text: str, *, leads: bool = False) -> str:
    """Escape what roff would read as its own."""
    text = text if leads else " ".join(text.split())
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return "\\&" + escaped if escaped[:1] in (".", "'", " ", "") else escaped
