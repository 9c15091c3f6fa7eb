"""`wai key create|list|revoke`: API keys, by which apps call."""

from __future__ import annotations

import argparse
from typing import Any
from urllib.parse import quote

from .admin_client import AdminClient
from .output import print_json, print_table, time_text
from .target import add_target_options, find_target


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai key`."""
    parser.epilog = "examples:\n  wai key create my-app\n  wai key revoke key_0123456789abcdef"
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="create a key; it is shown once")
    create.add_argument("name", metavar="NAME", help="what it is for, to recognise it by")
    for flag, what in (
        ("--rpm", "requests a minute"),
        ("--tpm", "tokens a minute"),
        ("--concurrency", "requests at once"),
        ("--monthly-tokens", "tokens a month"),
    ):
        create.add_argument(flag, metavar="N", type=int, help=f"at most so many {what}")
    create.add_argument("--model", metavar="ID", action="append", help="only this model (repeat)")
    create.add_argument("--node", metavar="NAME", action="append", help="only this node (repeat)")
    create.set_defaults(run=_create)
    listing = actions.add_parser("list", help="list the keys")
    listing.add_argument("--revoked", action="store_true", help="also those that were revoked")
    listing.set_defaults(run=_list)
    revoke = actions.add_parser("revoke", help="refuse a key from its next request on")
    revoke.add_argument("id", metavar="ID", help="its id, as `wai key list` shows it")
    revoke.set_defaults(run=_revoke)
    for action in (create, listing, revoke):
        add_target_options(action)
        action.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _create(parsed: argparse.Namespace) -> int:
    wanted = {
        "rpm": parsed.rpm,
        "tpm": parsed.tpm,
        "concurrency": parsed.concurrency,
        "monthly_tokens": parsed.monthly_tokens,
        "models": parsed.model,
        "nodes": parsed.node,
    }
    limits = {name: value for name, value in wanted.items() if value is not None}
    with AdminClient(find_target(parsed)) as relay:
        created = relay.post("/keys", {"name": parsed.name, "limits": limits})
    if parsed.json:
        print_json(created)
    else:
        print(created["key"])
        print(f"(shown this once; to revoke it: wai key revoke {created['id']})")
    return 0


def _list(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        keys = relay.get("/keys?revoked=true" if parsed.revoked else "/keys")["data"]
    if parsed.json:
        print_json(keys)
        return 0
    print_table(
        ("ID", "NAME", "KEY", "CREATED", "REVOKED"),
        [_row(key) for key in keys],
        empty="no API keys; create one with `wai key create NAME`",
    )
    return 0


def _row(key: dict[str, Any]) -> tuple[str, ...]:
    return (
        key["id"],
        key["name"],
        key["prefix"] + "…",
        time_text(key["created_at"]),
        time_text(key["revoked_at"]),
    )


def _revoke(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        revoked = relay.delete(f"/keys/{quote(parsed.id, safe='')}")
    if parsed.json:
        print_json(revoked)
    else:
        print(f"{revoked['name']} ({revoked['id']}) is revoked")
    return 0
