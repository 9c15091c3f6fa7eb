"""`wai requests list|show|replay`: the requests that are over, by key, model, node and time."""

from __future__ import annotations

import argparse
from typing import Any, Final
from urllib.parse import quote, urlencode

from wai_api.captures import CapturedRequest, ReplayView
from wai_api.requests import Explanation, FinishedList, FinishedRequest
from wai_cli.client.admin_client import AdminClient
from wai_cli.client.answers import read_as
from wai_cli.client.target import add_target_options, find_target
from wai_cli.options.times import WHEN, when_here
from wai_cli.options.values import between, count, named
from wai_cli.output.tables import plain, print_json, print_lines, print_table, say, time_text

from .explain import print_explanation

REPLAY_TIMEOUT_S: Final = 1300.0  # twice what the relay waits for a first byte
MAX_PAGE: Final = 500  # requests that the relay returns at a time
_EXAMPLES: Final = """\
examples:
  wai requests list                          the last 50
  wai requests list --failed --since 1d
  wai requests list --key my-app --slow 5000
  wai requests list --limit 2000 --csv > requests.csv
  wai requests show req_0123456789abcdef
  wai requests show req_0123456789abcdef --captured
  wai requests replay req_0123456789abcdef --node attic

What is kept holds no prompt and no answer, unless an admin captures a key's requests for a
while (`wai key capture`): then one can be looked at, and sent again to another node or model.
How long requests are kept is a setting of the relay. Times are those of this machine's zone."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai requests`."""
    parser.epilog = _EXAMPLES
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list requests that are over, the latest first")
    for what in ("key", "model", "node"):
        listing.add_argument(f"--{what}", metavar="NAME", help=f"only this {what}")
    listing.add_argument("--status", metavar="N", type=between(100, 599), help="only this status")
    listing.add_argument(
        *("--failed",), action="store_true", help="only those whose caller got no good answer"
    )
    listing.add_argument(
        *("--slow",),
        metavar="MS",
        type=count,
        help="only those whose first content took so long or longer",
    )
    listing.add_argument(
        "--since", metavar="WHEN", type=when_here, help=f"only from then on: {WHEN}"
    )
    listing.add_argument("--until", metavar="WHEN", type=when_here, help="only before then")
    listing.add_argument("--limit", metavar="N", type=count, default=50, help="(default: 50)")
    shown = listing.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print JSON, for scripts")
    shown.add_argument("--csv", action="store_true", help="print CSV, for spreadsheets")
    listing.set_defaults(run=_list)
    show = actions.add_parser("show", help="look at one: its way, times and tokens")
    show.add_argument(
        "--captured",
        action="store_true",
        help="its prompt and answer, if its key was captured; this is in the audit log",
    )
    show.set_defaults(run=_show)
    replay = actions.add_parser("replay", help="send a captured request again")
    replay.add_argument("--node", metavar="NAME", type=named, help="to this node")
    replay.add_argument("--model", metavar="NAME", type=named, help="to this model")
    replay.set_defaults(run=_replay)
    for action in (show, replay):
        action.add_argument("id", metavar="REQUEST_ID", type=named, help="as `list` shows it")
        action.add_argument("--json", action="store_true", help="print JSON, for scripts")
    for action in (listing, show, replay):
        add_target_options(action)


def _list(parsed: argparse.Namespace) -> int:
    asked: dict[str, Any] = {
        "key": parsed.key,
        "model": parsed.model,
        "node": parsed.node,
        "status": parsed.status,
        "failed": "true" if parsed.failed else None,
        "slow_ms": parsed.slow,
        "since": parsed.since,
        "until": parsed.until,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    with AdminClient(find_target(parsed)) as relay:
        rows, names = _read_pages(relay, given, parsed.limit)
    if parsed.json or parsed.csv:  # with all columns, also those that this CLI does not know
        for row in rows:
            row["key"] = names.get(row["key_id"], "")
        if parsed.json:
            print_json(rows)
        else:
            _print_csv(rows)
        return 0
    print_table(
        ("TIME", "REQUEST", "KEY", "MODEL", "NODE", "STATUS", "QUEUE", "FIRST", "IN ALL", "TOKENS"),
        [_cells(one, names) for one in (read_as(FinishedRequest, row) for row in rows)],
        empty="no such request is kept",
    )
    return 0


def _read_pages(
    relay: AdminClient, given: dict[str, Any], limit: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Read at most `limit` requests, page by page; return them and the names of their keys."""
    rows: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    page: dict[str, Any] = {}
    while len(rows) < limit:
        page["limit"] = min(limit - len(rows), MAX_PAGE)
        answer = relay.get(f"/requests/finished?{urlencode(given | page)}")
        found = read_as(FinishedList, answer)
        rows += answer["data"]
        names |= found.key_names
        if found.next is None:
            break
        page["before"] = found.next
    return rows, names


def _cells(one: FinishedRequest, names: dict[str, str]) -> tuple[object, ...]:
    about = "" if one.tokens_exact else "~"
    return (
        *(time_text(one.started_at), one.id, names.get(one.key_id) or one.key_id),
        *(one.model or "-", one.node or "-", _outcome(one)),
        *(_ms(one.queue_ms), _ms(one.ttft_ms), _ms(one.duration_ms)),
        f"{about}{one.prompt_tokens}+{one.completion_tokens}",
    )


def _outcome(one: FinishedRequest) -> str:
    if one.cancelled:
        return f"{one.status} cancelled"
    return f"{one.status} {one.fault}".rstrip()


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _print_csv(rows: list[dict[str, Any]]) -> None:
    from wai_relay.usage.csv_text import csv_text

    columns = list(rows[0]) if rows else list(FinishedRequest.__struct_fields__)
    print(plain(csv_text(columns, rows)), end="")


def _show(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        answer = relay.get(_path(parsed, "captured" if parsed.captured else "explain"))
    if parsed.json:
        print_json(answer)
    elif parsed.captured:
        found = read_as(CapturedRequest, answer)
        say(f"{found.id}: {found.path}, model {found.model or '-'}, status {found.status}")
        _print_text("prompt", found.prompt, cut=found.prompt_cut)
        _print_text("answer", found.answer, cut=found.answer_cut)
    else:
        explained = read_as(Explanation, answer)
        print_explanation(explained)
        if explained.captured:
            say(f"its prompt and answer were captured: wai requests show {explained.id} --captured")
    return 0


def _replay(parsed: argparse.Namespace) -> int:
    wanted = {"node": parsed.node, "model": parsed.model}
    with AdminClient(find_target(parsed), REPLAY_TIMEOUT_S) as relay:
        answer = relay.post(
            _path(parsed, "replay"), {name: to for name, to in wanted.items() if to is not None}
        )
    found = read_as(ReplayView, answer)
    if parsed.json:
        print_json(answer)
    else:
        fault = f" ({found.fault})" if found.fault else ""
        say(
            f"{found.id}: status {found.status}{fault}, {found.model or '-'} on {found.node or '-'}"
        )
        say(
            f"first token {_ms(found.ttft_ms)}, in all {_ms(found.duration_ms)},"
            f" {found.prompt_tokens} tokens of prompt, {found.completion_tokens} of answer"
        )
        _print_text("answer", found.answer, cut=found.answer_cut)
    return 0 if found.status < 400 and not found.fault else 1


def _path(parsed: argparse.Namespace, what: str) -> str:
    return f"/requests/{quote(parsed.id, safe='')}/{what}"


def _print_text(name: str, text: str, *, cut: bool) -> None:
    """Print a prompt or an answer, without what it may have for the terminal."""
    print(f"\n{name}:")
    print_lines(text.splitlines())
    if cut:
        say(f"(the {name} was longer)")
