"""`wai invite create|list|revoke`: invites, by which nodes join."""

from __future__ import annotations

import argparse
import sys
from typing import Final
from urllib.parse import quote

from wai_api.bounds import MAX_TTL_S
from wai_api.invites import CreatedInvite, InviteList, InviteView
from wai_cli.client.admin_client import AdminClient
from wai_cli.client.answers import read_as
from wai_cli.client.target import add_target_options, find_target
from wai_cli.options.values import hours, named
from wai_cli.output.tables import print_json, print_table, say, time_text

_MAX_HOURS: Final = MAX_TTL_S / 3600


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai invite`."""
    parser.epilog = "examples:\n  wai invite create\n  wai invite create --name box --hours 1"
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="create a join string for one node")
    create.add_argument("--name", metavar="NAME", help="what the node will be called")
    create.add_argument(
        "--hours", metavar="N", type=hours(_MAX_HOURS), help="how long it is good (default 24)"
    )
    create.add_argument(
        "--no-deploy", action="store_true", help="the node takes no orders to run models"
    )
    create.set_defaults(run=_create)
    listing = actions.add_parser("list", help="list the invites")
    listing.set_defaults(run=_list)
    revoke = actions.add_parser("revoke", help="make an unused invite worthless")
    revoke.add_argument(
        "id", metavar="ID", type=named, help="its id, as `wai invite list` shows it"
    )
    revoke.set_defaults(run=_revoke)
    for action in (create, listing, revoke):
        add_target_options(action)
        action.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _create(parsed: argparse.Namespace) -> int:
    wanted = {"name": parsed.name, "may_deploy": not parsed.no_deploy}
    if parsed.hours is not None:
        wanted["ttl_s"] = parsed.hours * 3600
    with AdminClient(find_target(parsed)) as relay:
        created = relay.post("/invites", wanted)
    if parsed.json:
        print_json(created)
        return 0
    invite = read_as(CreatedInvite, created)
    print("On the GPU box, run this one line; it installs wai there, joins, and starts it.")
    print(f"It is good for one node, until {time_text(invite.expires_at)}:\n")
    print(f"  {invite.command}\n")
    print("As root (`| sudo sh -s --` at its end) it becomes a service of the machine, else one")
    print("of yours. Where wai is installed already, `wai node join` asks for the invite itself:\n")
    print(f"  {invite.invite}")
    if "//127.0.0.1" in invite.command or "//localhost" in invite.command:
        print(
            "\nThis works on this machine only: start the relay with --public-url and the address"
            " that other machines reach it by.",
            file=sys.stderr,
        )
    return 0


def _list(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        answer = relay.get("/invites")
    if parsed.json:
        print_json(answer["data"])
        return 0
    print_table(
        ("ID", "NAME", "STATE", "EXPIRES", "USED BY"),
        [
            (one.id, one.name, one.state, time_text(one.expires_at), one.used_by)
            for one in read_as(InviteList, answer).data
        ],
        empty="no invites; create one with `wai invite create`",
    )
    return 0


def _revoke(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        revoked = relay.delete(f"/invites/{quote(parsed.id, safe='')}")
    if parsed.json:
        print_json(revoked)
    else:
        say(f"{read_as(InviteView, revoked).id} is revoked")
    return 0
