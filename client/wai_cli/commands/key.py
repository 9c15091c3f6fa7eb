"""`wai key create|list|update|rename|revoke`: API keys, by which apps call."""

from __future__ import annotations

import argparse
from typing import Final
from urllib.parse import quote

from wai_api.keys import CreatedKey, KeyList, KeyView
from wai_api.limits import LIMITS
from wai_api.relay import SettingsView, WhoAmI
from wai_cli.client.admin_client import AdminClient
from wai_cli.client.answers import read_as
from wai_cli.client.target import add_target_options, find_target
from wai_cli.options.limit_flags import add_limit_flags, limits_given
from wai_cli.options.values import named
from wai_cli.output.limits import limits_text
from wai_cli.output.tables import print_json, print_table, say, time_text
from wai_protocol.errors import RequestError

_EXAMPLES: Final = """\
examples:
  wai key create my-app --rpm 60 --local-only
  wai key update my-app --monthly-tokens 2000000 --rpm none
  wai key rename my-app chat-on-phones
  wai key revoke chat-on-phones"""


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
    revoke.set_defaults(run=_revoke)
    update = actions.add_parser("update", help="change a key's limits, from its next request on")
    add_limit_flags(update)
    update.set_defaults(run=_update)
    rename = actions.add_parser("rename", help="give a key another name")
    rename.set_defaults(run=_rename)
    for action in (update, rename, revoke):
        action.add_argument("key", metavar="KEY", type=named, help="its name or id")
    rename.add_argument("new", metavar="NEW", type=named, help="what it is called from now on")
    for action in (create, listing, update, rename, revoke):
        add_target_options(action)
        action.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _create(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        created = relay.post("/keys", {"name": parsed.name, "limits": limits_given(parsed)})
        url = read_as(SettingsView, relay.get("/settings")).public_url
        url = url or read_as(WhoAmI, relay.get("/whoami")).url
    if parsed.json:
        print_json(created)
        return 0
    key = read_as(CreatedKey, created)
    print(key.key)
    print(f"(shown this once; to revoke it: wai key revoke {key.id})")
    print(f"base URL for OpenAI's SDKs: {url}/v1")
    return 0


def _update(parsed: argparse.Namespace) -> int:
    limits = limits_given(parsed)
    if not limits:
        raise RequestError("nothing to change: give a limit, such as --rpm 60")
    with AdminClient(find_target(parsed)) as relay:
        changed = relay.patch(_path(parsed.key), {"limits": limits})
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


def _rename(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        changed = relay.patch(_path(parsed.key), {"name": parsed.new})
    if parsed.json:
        print_json(changed)
        return 0
    key = read_as(KeyView, changed)
    say(f"{parsed.key} ({key.id}) is called {key.name} from now on")
    return 0


def _path(name_or_id: str) -> str:
    return f"/keys/{quote(name_or_id, safe='')}"


def _shown(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _list(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        answer = relay.get("/keys?revoked=true" if parsed.revoked else "/keys")
    if parsed.json:
        print_json(answer["data"])
        return 0
    print_table(
        ("ID", "NAME", "KEY", "CREATED", "LAST USED", "LIMITS", "REVOKED"),
        [_row(key) for key in read_as(KeyList, answer).data],
        empty="no API keys; create one with `wai key create NAME`",
    )
    return 0


def _row(key: KeyView) -> tuple[str, ...]:
    return (
        *(key.id, key.name, key.prefix + "…"),
        *(time_text(key.created_at), time_text(key.last_used_at) or "never"),
        *(limits_text(key.limits) or "none", time_text(key.revoked_at)),
    )


def _revoke(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        revoked = relay.delete(_path(parsed.key))
    if parsed.json:
        print_json(revoked)
        return 0
    key = read_as(KeyView, revoked)
    say(f"{key.name} ({key.id}) is revoked")
    return 0
