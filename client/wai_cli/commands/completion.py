"""`wai completion`: a script by which a shell completes commands, options and file names."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SHELLS: Final = ("bash", "zsh", "fish")
_EXAMPLES: Final = """\
examples:
  eval "$(wai completion bash)"    in this shell; put the line into ~/.bashrc for all
  wai completion zsh > ~/.zfunc/_wai
                                   where ~/.zshrc has, before compinit: fpath+=~/.zfunc
  wai completion fish > ~/.config/fish/completions/wai.fish

Make it anew after an upgrade: it knows the commands of this version.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai completion`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    parser.set_defaults(run=print_completion)


def print_completion(parsed: argparse.Namespace) -> int:
    """Print the script for `parsed.shell`."""
    import shtab

    parser: argparse.ArgumentParser = parsed.whole()
    for action in _actions(parser):
        if action.type is Path:
            is_folder = action.metavar == "DIR"
            action.complete = shtab.DIRECTORY if is_folder else shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=parsed.shell), end="")
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of `parser`, and those of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
