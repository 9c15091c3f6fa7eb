"""`wai relay import`: move a relay from the file in its data folder into PostgreSQL."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from wai_cli.options.database import add_database_options, database_of

_NOTE: Final = """\
examples:
  wai relay import /var/lib/wai-relay --data /var/lib/wai-relay --database postgresql://wai@db/wai
  wai relay import old --data new --database postgresql://wai@db/wai

Stop the relay first. It keeps its key, so that nodes and callers notice nothing; nodes, API keys,
invites, admins, settings, audit log and usage are moved in one transaction, into a database in
which no relay has been. Do not start the relay with the old folder and without --database again."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai relay import`."""
    parser.epilog = _NOTE
    parser.add_argument(
        "source", metavar="FOLDER", type=Path, help="the data folder of the relay to move"
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        default=argparse.SUPPRESS,
        help="the data folder of the relay that will use the database; may be FOLDER",
    )
    add_database_options(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    from wai_cli.output.progress import ProgressLine
    from wai_cli.output.tables import print_json
    from wai_protocol.errors import RequestError
    from wai_relay.moving import move

    address = database_of(parsed)
    if address is None:
        raise RequestError("say where to move it: --database postgresql://USER@HOST/DATABASE")
    line = ProgressLine()

    def told(table: str, done: int, total: int) -> None:
        line.show(f"{table}: {done} of {total} rows", step=table)

    try:
        moved = move(parsed.source, parsed.data, address, told)
    finally:
        line.end()
    if parsed.json:
        print_json(
            {
                "data": str(parsed.data),
                "database": str(address),
                "tables": moved.tables,
                "files": moved.files,
            }
        )
        return 0
    print(f"moved {sum(moved.tables.values())} rows to {address}.")
    print(f"Start it: wai relay --data {parsed.data} --database URL")
    return 0
