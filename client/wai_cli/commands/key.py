"""`wai key create|list|update|rename|rotate|capture|revoke`: API keys, by which apps call."""

from __future__ import annotations

import argparse
from typing import Any, Final
from urllib.parse import quote, urlencode

from wai_api.bounds import MAX_GRACE_S
from wai_api.captures import MAX_CAPTURE_S, MIN_CAPTURE_S
from wai_api.keys import CreatedKey, KeyList, KeyView
from wai_api.limits import LIMITS
from wai_api.relay import SettingsView, WhoAmI
from wai_cli.client.admin_client import AdminClient
from wai_cli.client.answers import read_as
from wai_cli.client.target import add_target_options, find_target
from wai_cli.options.limit_flags import add_limit_flags, limits_given
from wai_cli.options.times import span_up_to
from wai_cli.options.values import NONE, duration, named
from wai_cli.output.limits import limit_text, limits_text
from wai_cli.output.tables import print_json, print_table, say, time_text
from wai_protocol.errors import RequestError

_EXAMPLES: Final = """\
examples:
  wai key create my-app --rpm 60 --local-only
  wai key update my-app --monthly-tokens 2000000 --rpm none
  wai key update my-app --label team=web --label prod
  wai key rename my-app chat-on-phones
  wai key rotate chat-on-phones --grace 24h
  wai key capture chat-on-phones --for 10m
  wai key capture chat-on-phones --off
  wai key revoke chat-on-phones"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai key`."""
    parser.epilog = _EXAMPLES
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="create a key; it is shown once")
    create.add_argument(
        "name", metavar="NAME", type=named, help="what it is for, to recognise it by"
    )
    _add_labels(create, "a word to group it by, for usage; repeat for more")
    add_limit_flags(create)
    create.set_defaults(run=_create)
    listing = actions.add_parser("list", help="list the keys")
    listing.add_argument("--revoked", action="store_true", help="also those that were revoked")
    listing.add_argument("--label", metavar="LABEL", help="only those with this label")
    listing.set_defaults(run=_list)
    revoke = actions.add_parser("revoke", help="refuse a key from its next request on")
    revoke.set_defaults(run=_revoke)
    update = actions.add_parser(
        "update", help="change a key's limits, from its next request on, or its labels"
    )
    _add_labels(update, "its labels from now on, in place of those it has; none: no label")
    add_limit_flags(update)
    update.set_defaults(run=_update)
    rename = actions.add_parser("rename", help="give a key another name")
    rename.set_defaults(run=_rename)
    rotate = actions.add_parser(
        "rotate", help="give a key another secret, shown once; the former is good for a while"
    )
    rotate.add_argument(
        "--grace",
        metavar="TIME",
        type=span_up_to(MAX_GRACE_S),
        default="24h",
        help="for how long the former secret is good besides: 24h, 7d, at most 30d; 0: no former"
        " secret is good any more (default: 24h)",
    )
    rotate.set_defaults(run=_rotate)
    capture = actions.add_parser(
        "capture",
        help="keep the prompts and answers of a key's requests for a while, to look at one",
        description="Keep the prompts and answers of a key's next requests, in the relay's memory"
        " only, for at most an hour; then they are wiped. Off by default, and in the audit log.",
    )
    how = capture.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--for",
        dest="for_s",
        metavar="TIME",
        type=duration(MIN_CAPTURE_S, MAX_CAPTURE_S),
        help="for how long: 10m, at most 1h",
    )
    how.add_argument("--off", action="store_true", help="no more, and wipe what was captured")
    capture.set_defaults(run=_capture)
    for action in (update, rename, rotate, capture, revoke):
        action.add_argument("key", metavar="KEY", type=named, help="its name or id")
    rename.add_argument("new", metavar="NEW", type=named, help="what it is called from now on")
    for action in (create, listing, update, rename, rotate, capture, revoke):
        add_target_options(action)
        action.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _add_labels(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("--label", dest="labels", metavar="LABEL", action="append", help=about)


def _create(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        wanted = {"name": parsed.name, "limits": limits_given(parsed)}
        if parsed.labels:
            wanted["labels"] = parsed.labels
        created = relay.post("/keys", wanted)
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
    changes: dict[str, Any] = {"limits": limits} if limits else {}
    if parsed.labels:
        changes["labels"] = [] if parsed.labels == [NONE] else parsed.labels
    if not changes:
        raise RequestError("nothing to change: give a limit, such as --rpm 60, or --label")
    with AdminClient(find_target(parsed)) as relay:
        changed = relay.patch(_path(parsed.key), changes)
    if parsed.json:
        print_json(changed)
        return 0
    key = read_as(KeyView, changed)
    set_now = [
        limit_text(limit, getattr(key.limits, limit.attribute))
        for limit in LIMITS
        if limit.name in limits
    ]
    if parsed.labels:
        set_now.append(f"labels {', '.join(key.labels) or 'none'}")
    say(f"{key.name} ({key.id}) has from now on: {', '.join(set_now)}")
    return 0


def _rotate(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        rotated = relay.post(f"{_path(parsed.key)}/rotate", {"grace_s": parsed.grace})
    if parsed.json:
        print_json(rotated)
        return 0
    key = read_as(CreatedKey, rotated)
    print(key.key)
    until = time_text(key.former_until)
    former = f"the former secret is good until {until}" if until else "no former secret is good"
    say(f"(shown this once; {former})")
    return 0


def _capture(parsed: argparse.Namespace) -> int:
    path = f"{_path(parsed.key)}/capture"
    with AdminClient(find_target(parsed)) as relay:
        answer = relay.delete(path) if parsed.off else relay.post(path, {"for_s": parsed.for_s})
    if parsed.json:
        print_json(answer)
        return 0
    key = read_as(KeyView, answer)
    if key.capture_until is None:
        say(f"the requests of {key.name} are not captured; what was captured is wiped")
        return 0
    until = time_text(key.capture_until)
    say(f"prompts and answers of {key.name} are captured until {until}, in the relay's memory")
    say("look at one: wai requests show ID --captured; stop: wai key capture NAME --off")
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


def _list(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        asked = {"revoked": "true"} if parsed.revoked else {}
        if parsed.label is not None:
            asked["label"] = parsed.label
        answer = relay.get(f"/keys?{urlencode(asked)}" if asked else "/keys")
    if parsed.json:
        print_json(answer["data"])
        return 0
    keys = read_as(KeyList, answer).data
    print_table(
        ("ID", "NAME", "KEY", "CREATED", "LAST USED", "LABELS", "LIMITS", "REVOKED"),
        [_row(key) for key in keys],
        empty="no API keys; create one with `wai key create NAME`",
    )
    for key in keys:
        if key.capture_until is not None:
            until = time_text(key.capture_until)
            say(f"prompts and answers of {key.name} are captured until {until}")
    return 0


def _row(key: KeyView) -> tuple[str, ...]:
    return (
        *(key.id, key.name, key.prefix + "…"),
        *(time_text(key.created_at), time_text(key.last_used_at) or "never"),
        *(", ".join(key.labels), limits_text(key.limits) or "none", time_text(key.revoked_at)),
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
