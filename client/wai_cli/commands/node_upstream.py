"""`wai node upstream list|allow|deny`: decide which of the servers found here a node may use."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, Final

from wai_cli.options.paths import add_data_option, node_data
from wai_cli.options.values import between
from wai_cli.output.tables import print_json, print_table, say
from wai_protocol.errors import RequestError

_NOTE: Final = """\
A node without --upstream serves what it finds on the usual ports. A server of its own user, of root
or of a service user is used at once. Any other user's server gets no request before you allow it,
because that user could read every prompt. Your answer holds for that port and that user; the node
applies it within ten seconds, without a restart. Run this as the node's user."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai node upstream`."""
    parser.epilog = _NOTE
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list the inference servers found on this machine")
    listing.set_defaults(run=_list)
    allow = actions.add_parser("allow", help="let the node use the server at a port")
    allow.set_defaults(run=_allow)
    deny = actions.add_parser("deny", help="never use the server at a port")
    deny.set_defaults(run=_deny)
    for action in (allow, deny):
        action.add_argument(
            "port", metavar="PORT", type=between(1, 65535), help="where it listens now"
        )
    for action in (listing, allow, deny):
        add_data_option(action, node_data(), "node")
        action.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _list(parsed: argparse.Namespace) -> int:
    import asyncio

    rows = asyncio.run(_found(parsed.data))
    if parsed.json:
        print_json(rows)
        return 0
    print_table(
        ("PORT", "SERVER", "OWNER", ""),
        [(row["port"], row["server"], row["owner"], row["meaning"]) for row in rows],
        empty="no inference server on the usual ports of this machine",
    )
    return 0


async def _found(data: Path) -> list[dict[str, Any]]:
    from wai_node.upstreams import Consent, installed_kinds, look_around

    rows = []
    for upstream, judged in await look_around(Consent(data), kinds=installed_kinds()):
        rows.append(
            {
                "port": upstream.origin.port,
                "server": upstream.kind,
                "owner": judged.owner,
                "state": judged.verdict.name.lower(),
                "meaning": judged.verdict.text,
            }
        )
        await upstream.aclose()
    return rows


def _allow(parsed: argparse.Namespace) -> int:
    return _answer(parsed, allowed=True)


def _deny(parsed: argparse.Namespace) -> int:
    return _answer(parsed, allowed=False)


def _answer(parsed: argparse.Namespace, *, allowed: bool) -> int:
    from wai_node.membership import MEMBERSHIP_FILE
    from wai_node.upstreams import Consent
    from wai_node.upstreams.consent import user_name

    if not (parsed.data / MEMBERSHIP_FILE).exists():
        raise RequestError(f"no node has joined with the folder {parsed.data}; see --data")
    owner_uid = parsed.data.stat().st_uid
    if owner_uid != os.geteuid():
        user = user_name(owner_uid)
        raise RequestError(f"the folder {parsed.data} is {user}'s: run this by `sudo -u {user}`")
    consent = Consent(parsed.data)
    uids = consent.owners(parsed.port)
    if not uids:
        raise RequestError(
            f"nobody is known to listen at port {parsed.port} of this machine; start the server"
            " first, or name it to the node with --upstream URL"
        )
    for uid in sorted(uids):
        consent.answer(parsed.port, uid, allowed=allowed)
    owner = consent.judge(parsed.port).owner
    if parsed.json:
        print_json({"port": parsed.port, "owner": owner, "allowed": allowed})
    else:
        say(f"the server of {owner} at port {parsed.port} is {'' if allowed else 'not '}to be used")
    return 0
