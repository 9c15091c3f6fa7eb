"""`wai restore`: a relay from its backup, in a folder that no relay runs in."""

from __future__ import annotations

import argparse
from pathlib import Path

from .paths import add_data_option, relay_data


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai restore`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="what `wai backup` wrote")
    parser.add_argument("--force", action="store_true", help="replace the relay that is there")
    add_data_option(parser, relay_data(), "relay")
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    from wai_relay.backup import restore

    names = restore(parsed.file, parsed.data, force=parsed.force)
    print(f"{parsed.data}: {', '.join(names)}. Start it with: wai relay --data {parsed.data} …")
    return 0
