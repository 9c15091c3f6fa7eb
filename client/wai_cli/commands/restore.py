"""`wai restore`: restore a relay from its backup, into a folder that no relay uses."""

from __future__ import annotations

import argparse
from pathlib import Path

from wai_cli.options.database import add_database_options, database_of
from wai_cli.options.paths import add_data_option, relay_data


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai restore`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="what `wai backup` wrote")
    parser.add_argument("--force", action="store_true", help="replace the relay that is there")
    add_data_option(parser, relay_data(), "relay")
    add_database_options(parser)
    parser.epilog = "With --database the rows go into that PostgreSQL, which must be empty."
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    from wai_protocol.errors import StoreError
    from wai_relay.backup import restore
    from wai_transport.owner import as_owner

    address = database_of(parsed)
    try:
        # Root acts as the folder's owner, so that the service can read the files.
        with parsed.file.open("rb") as file, as_owner(parsed.data):
            names = restore(file, parsed.data, force=parsed.force, address=address)
    except OSError as error:
        text = f"the backup can't be restored: {parsed.file}: {error.strerror}"
        raise StoreError(text) from error
    print(f"{parsed.data}: {', '.join(names)}.")
    also = "" if address is None else " --database URL"
    print(f"Start it: systemctl start wai-relay, or wai relay --data {parsed.data}{also}")
    return 0
