"""`wai node uninstall`: remove a node that `install.sh` installed on this machine.

The copy of `install.sh` in this package does the removal. This process replaces itself with it
(exec), because the folder that this program runs from is deleted too.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from wai_cli.options.paths import node_data

SYSTEM_ENVIRONMENT: Final = Path("/opt/wai")
MARK: Final = ".role-node"  # a file that install.sh makes in a node's environment


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai node uninstall`."""
    parser.add_argument("--yes", action="store_true", help="don't ask")
    parser.add_argument("--purge", action="store_true", help="remove the node's key and models too")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    from importlib.resources import files

    from wai_protocol.errors import RequestError

    environment = Path(sys.prefix)
    if not (environment / MARK).exists():
        raise RequestError(
            f"the node in {environment} was not installed by install.sh: stop `wai node run`, and"
            f" remove that environment and {node_data()} by hand"
        )
    name, relay = _membership(node_data())
    if name:
        print(f"The relay ({relay}) keeps the node in its list until an admin runs there:")
        print(f"  wai node remove {name}", flush=True)
    script = files("wai_relay.installer") / "install.sh"
    command = ["sh", str(script), "node", "--uninstall"]
    if environment != SYSTEM_ENVIRONMENT:
        command.append("--user")
    command += [
        option
        for option, asked in (
            ("--yes", parsed.yes),
            ("--purge", parsed.purge),
            ("--dry-run", parsed.dry_run),
        )
        if asked
    ]
    os.execv("/bin/sh", command)  # noqa: S606 - our own script


def _membership(data: Path) -> tuple[str, str]:
    """Return the node's name and its relay's URL; "" for what is not known."""
    from wai_node.membership import load_membership
    from wai_protocol.errors import WaiError
    from wai_transport.folder import DataFolder
    from wai_transport.owner import as_owner

    try:
        with as_owner(data):
            membership = load_membership(DataFolder(data))
    except WaiError:
        return "", ""
    return membership.name, membership.url
