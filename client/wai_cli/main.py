"""The `wai` command: choose the command's module, parse the arguments, run, return an exit status.

Exit status 0: done. 1: it failed, and stderr says why. 2: the command line was wrong. 130: Ctrl-C.
Only the module of the given command is imported, and modules import what is slow to load when they
run, so that `wai --help` stays fast.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Container, Sequence
from typing import Final, Literal, TextIO

from wai_protocol.errors import WaiError

# Command → its line in `wai --help`. The module `wai_cli.commands.NAME` (with `_` for `-`) has a
# function `configure(parser)` that adds the arguments and sets `run`, which takes the parsed ones.
GROUPS: Final = {
    "up": "try it: a relay and this machine as its node, with a model",
    "relay": "run a relay",
    "node": "join a relay as a node, run the node; list, drain and remove nodes",
    "invite": "let a node join: create, list and revoke invites",
    "sign-in": "sign a browser in to the dashboard by a link; list and end sign-ins",
    "key": "let an app call: create, list and revoke API keys",
    "model": "find models, see what fits, deploy them to nodes, change their context",
    "status": "see on one screen what runs and what is wrong",
    "doctor": "check the whole path and say what to do",
    "notify": "try whether messages about problems arrive",
    "top": "watch requests, nodes and tokens per second as they are now",
    "requests": "list the requests that are over, look at one",
    "usage": "see what requests cost: tokens, times, errors",
    "explain": "see why a request went to the node that it went to",
    "backup": "save all that a relay is to a file, while it runs",
    "restore": "put a relay's backup back",
    "settings": "print a settings file with every key and what it means",
    "completion": "have your shell complete `wai`'s commands and options",
    "manual": "write the manual pages of all commands, for `man`",
    "version": "print the version",
}
INTERRUPTED: Final = 128 + signal.SIGINT
_OF_OUTPUT: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
_EXAMPLES: Final = """\
examples:
  wai up                                       try it on this machine
  wai relay --listen :443                      on a machine that both sides reach
  wai invite create && wai key create my-app   there: one join string, one API key
  wai node join --name box                     on the GPU box; asks for the invite
  wai node run

exit status: 0 done; 1 it failed, and stderr says why; 2 the command line was wrong; 130 Ctrl-C.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `wai` with `argv` (without the program's name) and return the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    _prepare_output()
    try:
        asked = next((one for one in arguments if not one.startswith("-")), "")
        parser = parser_for((asked,))
        for argument in arguments:
            if not argument.isascii() and not _is_text(argument):
                parser.error(f"{argument!r} is not text in UTF-8")
        parsed = parser.parse_args(arguments)
        status: int = parsed.run(parsed) or 0
        sys.stdout.flush()
    except WaiError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # `wai node list | head` closed the pipe.
        _forget_output()
        return 1
    except OSError as error:
        if error.errno not in _OF_OUTPUT:
            raise  # not one of stdout's: those of files and sockets are `WaiError`s
        _forget_output()
        return _complain(f"the output can't be written: {error.strerror}")
    return status


def _prepare_output() -> None:
    """Have all text printed, whatever the locale, and make up for what `wai … >&-` closed."""
    if sys.stdin is None or sys.stdout is None or sys.stderr is None:
        _open_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does by itself


def _open_closed() -> None:
    """Let no file of ours take the place of a closed stdout: what is printed would be in it. What
    is written to stdout fails from now on, and what is written to stderr is lost."""
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # it gets the lowest number that is free: this one
    sys.stdin = sys.stdin or _lasting(0, "r")
    sys.stdout = sys.stdout or _lasting(1, "w")
    sys.stderr = sys.stderr or _lasting(2, "w")


def _lasting(number: int, mode: Literal["r", "w"]) -> TextIO:
    return open(number, mode, encoding="utf-8", closefd=False)


def _forget_output() -> None:
    """Send what waits for stdout nowhere, so that Python does not fail again when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser_for(commands: Container[str]) -> argparse.ArgumentParser:
    """The parser, which knows the arguments of `commands`; of the others, only what they are.
    `whole` of what it parsed makes the one that knows all."""
    parser = argparse.ArgumentParser(
        prog="wai",
        description="Call the language model on your GPU box from anywhere.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.set_defaults(
        run=lambda parsed: _no_command(parser, parsed), whole=lambda: parser_for(GROUPS)
    )
    groups = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, summary in GROUPS.items():
        group = groups.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in commands:
            importlib.import_module(f"wai_cli.commands.{name.replace('-', '_')}").configure(group)
            importlib.import_module("wai_cli.options.examples").add_examples(group, name)
    return parser


def _no_command(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> int:
    if parsed.version:
        from .commands.version import print_version

        return print_version(parsed)
    parser.print_help(sys.stderr)
    return 2


def _is_text(argument: str) -> bool:
    """Whether an argument was valid UTF-8: Python decodes other bytes to surrogates."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def _complain(message: str) -> int:
    from .output.tables import plain

    print(f"wai: {plain(message)}", file=sys.stderr)
    return 1
