"""`wai usage`: what requests cost, added up by key, model, node, day or hour."""

from __future__ import annotations

import argparse
from typing import Any, Final
from urllib.parse import urlencode

from wai_api.usage import GROUPINGS, UsageList, UsageRow
from wai_cli.client.admin_client import AdminClient
from wai_cli.client.answers import read_as
from wai_cli.client.target import add_target_options, find_target
from wai_cli.options.times import WHEN, when_utc
from wai_cli.output.tables import plain, print_json, print_table

_COLUMNS: Final = (
    *("REQUESTS", "ERRORS", "PROMPT", "CACHED", "ANSWER"),
    *("FIRST p50", "p99", "TOKENS/S"),
)
_EXAMPLES: Final = """\
examples:
  wai usage                                  the last seven days, by day
  wai usage --by key --since 30d
  wai usage --by label --since 30d
  wai usage --by hour --since 2026-11-23 --csv > usage.csv

Times are those of UTC. Tokens marked ~ are in part estimated: an upstream did not tell."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai usage`."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "--by",
        choices=GROUPINGS,
        default="day",
        help="what the rows are for (default: day)",
    )
    parser.add_argument(
        "--since",
        metavar="WHEN",
        type=when_utc,
        default="7d",
        help=f"{WHEN} (default: 7d)",
    )
    parser.add_argument("--until", metavar="WHEN", type=when_utc, help="up to then (default: now)")
    for what in ("key", "label", "model", "node"):
        parser.add_argument(f"--{what}", metavar="NAME", help=f"only this {what}")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print JSON, for scripts")
    shown.add_argument("--csv", action="store_true", help="print CSV, for spreadsheets")
    add_target_options(parser)
    parser.set_defaults(run=_usage)


def _usage(parsed: argparse.Namespace) -> int:
    asked = {"by": parsed.by, "since": parsed.since}
    if parsed.until is not None:
        asked["until"] = parsed.until
    for name in ("key", "label", "model", "node"):
        if (only := getattr(parsed, name)) is not None:
            asked[name] = only
    with AdminClient(find_target(parsed)) as relay:
        answer = relay.get(f"/usage?{urlencode(asked)}")
    if parsed.json or parsed.csv:  # with all columns, also those that this CLI does not know
        rows = [{**row, "name": answer["names"].get(row["group"], "")} for row in answer["data"]]
        if parsed.json:
            print_json(rows)
        else:
            _print_csv(rows)
        return 0
    usage = read_as(UsageList, answer)
    print_table(
        (parsed.by.upper(), *_COLUMNS),
        [_row(row, usage.names.get(row.group, "")) for row in usage.data],
        empty="no requests in that time",
    )
    return 0


def _print_csv(rows: list[dict[str, Any]]) -> None:
    from wai_relay.usage.csv_text import csv_text

    columns = ["group", "name"]
    columns += [name for name in (rows[0] if rows else ()) if name not in columns]
    print(plain(csv_text(columns, rows)), end="")


def _row(row: UsageRow, name: str) -> tuple[str, ...]:
    unsure = "~" if row.estimated else ""
    return (
        name or row.group or "(none)",
        str(row.requests),
        str(row.errors),
        f"{unsure}{row.prompt_tokens}",
        str(row.cached_tokens),
        f"{unsure}{row.completion_tokens}",
        _ms(row.ttft_p50_ms),
        _ms(row.ttft_p99_ms),
        "-" if row.tokens_per_s is None else f"{row.tokens_per_s:.1f}",
    )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"
