"""`wai key create|list|update|revoke`: API keys, by which apps call."""

from __future__ import annotations

import argparse
from typing import Final
from urllib.parse import quote

from wai_api.keys import CreatedKey, KeyList, KeyView
from wai_api.limits import LIMITS
from wai_cli.client.admin_client import AdminClient
from wai_cli.client.answers import read_as
from wai_cli.client.target import add_target_options, find_target
from wai_cli.options.limit_flags import add_limit_flags, limits_given
from wai_cli.options.values import named
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
    add_limit_flags(create)
    create.set_defaults(run=_create)
    listing = actions.add_parser("list", help="list the keys")
    listing.add_argument("--revoked", action="store_true", help="also those that were revoked")
    listing.set_defaults(run=_list)
    revoke = actions.add_parser("revoke", help="refuse a key from its next request on")
    revoke.add_argument("id", metavar="ID", type=named, help="its id, as `wai key list` shows it")
    revoke.set_defaults(run=_revoke)
    update = actions.add_parser("update", help="change a key's limits, from its next request on")
    update.add_argument("id", metavar="ID", type=named, help="its id, as `wai key list` shows it")
    add_limit_flags(update)
    update.set_defaults(run=_update)
    for action in (create, listing, update, revoke):
        add_target_options(action)
        action.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _create(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        created = relay.post("/keys", {"name": parsed.name, "limits": limits_given(parsed)})
    if parsed.json:
        print_json(created)
        return 0
    key = read_as(CreatedKey, created)
    print(key.key)
    print(f"(shown this once; to revoke it: wai key revoke {key.id})")
    return 0


def _update(parsed: argparse.Namespace) -> int:
    limits = limits_given(parsed)
    if not limits:
        raise RequestError("nothing to change: give a limit, such as --rpm 60")
    with AdminClient(find_target(parsed)) as relay:
        changed = relay.patch(f"/keys/{quote(parsed.id, safe='')}", {"limits": limits})
    if parsed.json:
        print_json(changed)
        return 0
    key = read_as(KeyView, changed)
    set_now = ", ".join(
        f"{limit.name} {_shown(getattr(key.limits, limit.attribute))}"
        for limit in LIMITS
        if limit.name in limits
    )
    say(f"{key.name} ({key.id}) has from now on: {set_now}")
    return 0


def _shown(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _list(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        answer = relay.get("/keys?revoked=true" if parsed.revoked else "/keys")
    if parsed.json:
        print_json(answer["data"])
        return 0
    print_table(
        ("ID", "NAME", "KEY", "CREATED", "REVOKED"),
        [_row(key) for key in read_as(KeyList, answer).data],
        empty="no API keys; create one with `wai key create NAME`",
    )
    return 0


def _row(key: KeyView) -> tuple[str, ...]:
    return (
        *(key.id, key.name, key.prefix + "…"),
        *(time_text(key.created_at), time_text(key.revoked_at)),
    )


def _revoke(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        revoked = relay.delete(f"/keys/{quote(parsed.id, safe='')}")
    if parsed.json:
        print_json(revoked)
        return 0
    key = read_as(KeyView, revoked)
    say(f"{key.name} ({key.id}) is revoked")
    return 0
