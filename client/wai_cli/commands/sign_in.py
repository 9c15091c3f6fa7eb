"""`wai sign-in link|list|end`: sign a browser in to the dashboard, list and end sign-ins."""

from __future__ import annotations

import argparse
from urllib.parse import quote

from wai_api.sign_ins import SignInEntry, SignInLink, SignInList
from wai_cli.client.admin_client import AdminClient
from wai_cli.client.answers import read_as
from wai_cli.client.target import add_target_options, find_target
from wai_cli.options.values import named
from wai_cli.output.tables import print_json, print_table, time_text


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai sign-in`."""
    parser.epilog = "examples:\n  wai sign-in link\n  wai sign-in list\n  wai sign-in end --all"
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    link = actions.add_parser("link", help="print a link that signs one browser in")
    link.set_defaults(run=_link)
    listing = actions.add_parser("list", help="list the browsers that are signed in")
    listing.set_defaults(run=_list)
    end = actions.add_parser("end", help="sign a browser out, or all of them")
    which = end.add_mutually_exclusive_group(required=True)
    which.add_argument(
        *("id",),
        metavar="ID",
        nargs="?",
        type=named,
        help="its id, as `wai sign-in list` shows it",
    )
    which.add_argument("--all", action="store_true", help="every browser of every admin")
    end.set_defaults(run=_end)
    for action in (link, listing, end):
        add_target_options(action)
        action.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _link(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        made = relay.post("/sign-in-links")
    if parsed.json:
        print_json(made)
        return 0
    link = read_as(SignInLink, made)
    print(link.url)
    print(f"(good for one browser, until {time_text(link.expires_at)})")
    return 0


def _list(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        answer = relay.get("/sign-ins")
    if parsed.json:
        print_json(answer["data"])
        return 0
    print_table(
        ("ID", "ADMIN", "SINCE", "LAST USED", "FROM", "BROWSER"),
        [
            (
                *(one.id, one.admin, time_text(one.created_at), time_text(one.used_at)),
                *(one.address, one.user_agent),
            )
            for one in read_as(SignInList, answer).data
        ],
        empty="no browser is signed in",
    )
    return 0


def _end(parsed: argparse.Namespace) -> int:
    path = "/sign-ins" if parsed.all else f"/sign-ins/{quote(parsed.id, safe='')}"
    with AdminClient(find_target(parsed)) as relay:
        ended = relay.delete(path)
    if parsed.json:
        print_json(ended)
    elif parsed.all:
        print("every browser is signed out")
    else:
        entry = read_as(SignInEntry, ended)
        print(f"{entry.id}, a browser of {entry.admin}, is signed out")
    return 0
