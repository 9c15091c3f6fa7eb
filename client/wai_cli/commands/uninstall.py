"""`wai node uninstall`: take a node that `install.sh` installed off this machine again.

What was installed is removed by the script that did it, which came with this very software; the
process becomes that script, since the folder that it runs from goes too.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from wai_cli.options.paths import node_data

SYSTEM_ENVIRONMENT: Final = Path("/opt/wai")
MARK: Final = ".role-node"  # what install.sh leaves in the environment of a node


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai node uninstall`."""
    parser.add_argument("--yes", action="store_true", help="don't ask")
    parser.add_argument("--purge", action="store_true", help="the node's key and models too")
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
        print(f"At the relay ({relay}) the node stays known until an admin runs there:")
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
    """The node's name and its relay; "" where nothing tells."""
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
