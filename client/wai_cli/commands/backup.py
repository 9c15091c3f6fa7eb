"""`wai backup`: write the relay's database and keys into one private file."""

from __future__ import annotations

import argparse
from pathlib import Path

from wai_cli.options.database import add_database_options, database_of
from wai_cli.options.paths import add_data_option, relay_data

_NOTE = """\
The relay may keep running. The file holds its keys: whoever has it can pass for this relay.
`wai restore` puts it back, here or on another machine."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai backup`."""
    parser.epilog = _NOTE
    parser.add_argument("file", metavar="FILE", type=Path, help="a new file, made with mode 0600")
    add_data_option(parser, relay_data(), "relay")
    add_database_options(parser)
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    from wai_relay.backup import back_up

    size = back_up(parsed.data, parsed.file, database_of(parsed))
    print(f"{parsed.file}: {size} bytes. Keep it as safe as {parsed.data}.")
    return 0
