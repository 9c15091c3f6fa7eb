"""`wai key create|list|update|revoke`: API keys, by which apps call."""

from __future__ import annotations

import argparse
from typing import Any, Final
from urllib.parse import quote

from wai_cli.client.admin_client import AdminClient
from wai_cli.client.target import add_target_options, find_target
from wai_cli.options.values import NONE, between, count_or_none, future_or_none, named
from wai_cli.output.tables import print_json, print_table, say, time_text
from wai_protocol.errors import RequestError

_EXAMPLES: Final = """\
examples:
  wai key create my-app --rpm 60 --local-only
  wai key update key_0123456789abcdef --monthly-tokens 2000000 --rpm none
  wai key revoke key_0123456789abcdef"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai key`."""
    parser.epilog = _EXAMPLES
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="create a key; it is shown once")
    create.add_argument(
        "name", metavar="NAME", type=named, help="what it is for, to recognise it by"
    )
    _add_limits(create)
    create.set_defaults(run=_create)
    listing = actions.add_parser("list", help="list the keys")
    listing.add_argument("--revoked", action="store_true", help="also those that were revoked")
    listing.set_defaults(run=_list)
    revoke = actions.add_parser("revoke", help="refuse a key from its next request on")
    revoke.add_argument("id", metavar="ID", type=named, help="its id, as `wai key list` shows it")
    revoke.set_defaults(run=_revoke)
    update = actions.add_parser("update", help="change a key's limits, from its next request on")
    update.add_argument("id", metavar="ID", type=named, help="its id, as `wai key list` shows it")
    _add_limits(update)
    update.set_defaults(run=_update)
    for action in (create, listing, update, revoke):
        add_target_options(action)
        action.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _add_limits(action: argparse.ArgumentParser) -> None:
    """The flags by which limits are set; what is not given stays as it is."""
    for flag, what in (
        ("--rpm", "requests a minute"),
        ("--tpm", "tokens a minute"),
        ("--concurrency", "requests at once"),
        ("--monthly-tokens", "tokens a calendar month (UTC)"),
    ):
        action.add_argument(
            flag, metavar="N", type=count_or_none, help=f"at most so many {what}, or none: no limit"
        )
    action.add_argument(
        "--expires",
        metavar="DATE",
        type=future_or_none,
        help="good until 2027-01-31 (UTC), or none",
    )
    for flag, dest, what in (("--model", "models", "model"), ("--node", "nodes", "node")):
        action.add_argument(
            flag, metavar="NAME", dest=dest, action="append", help=f"only this {what} (repeat)"
        )
    action.add_argument(
        "--priority",
        metavar="N",
        type=between(-3, 3),
        help="its place in the queue, -3 to 3 (default: 0)",
    )
    action.add_argument(
        "--local-only",
        action=argparse.BooleanOptionalAction,
        help="never to a cloud provider, only to nodes",
    )
    action.add_argument(
        "--continue",
        dest="continue_",
        action=argparse.BooleanOptionalAction,
        help="an answer whose node died is continued on another",
    )


def _limits(parsed: argparse.Namespace) -> dict[str, Any]:
    """The limits that were given, as the admin API takes them."""
    given = {
        "rpm": parsed.rpm,
        "tpm": parsed.tpm,
        "concurrency": parsed.concurrency,
        "monthly_tokens": parsed.monthly_tokens,
        "expires_at": parsed.expires,
        "models": _names(parsed.models),
        "nodes": _names(parsed.nodes),
        "priority": parsed.priority,
        "local_only": parsed.local_only,
        "continue": parsed.continue_,
    }
    return {
        name: None if value == NONE else value for name, value in given.items() if value is not None
    }


def _names(given: list[str] | None) -> list[str] | None:
    return [] if given == [NONE] else given


def _create(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        created = relay.post("/keys", {"name": parsed.name, "limits": _limits(parsed)})
    if parsed.json:
        print_json(created)
    else:
        print(created["key"])
        print(f"(shown this once; to revoke it: wai key revoke {created['id']})")
    return 0


def _update(parsed: argparse.Namespace) -> int:
    limits = _limits(parsed)
    if not limits:
        raise RequestError("nothing to change: give a limit, such as --rpm 60")
    with AdminClient(find_target(parsed)) as relay:
        changed = relay.patch(f"/keys/{quote(parsed.id, safe='')}", {"limits": limits})
    if parsed.json:
        print_json(changed)
    else:
        set_now = ", ".join(f"{name} {changed['limits'][name]}" for name in limits)
        say(f"{changed['name']} ({changed['id']}) has from now on: {set_now}")
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
        say(f"{revoked['name']} ({revoked['id']}) is revoked")
    return 0
