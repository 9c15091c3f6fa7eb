"""`wai notify test`: try whether messages about problems arrive."""

from __future__ import annotations

import argparse
from typing import Final

from wai_api.notify import NotifyResults
from wai_cli.client.admin_client import AdminClient
from wai_cli.client.answers import read_as
from wai_cli.client.target import add_target_options, find_target
from wai_cli.output.tables import print_json, say
from wai_protocol.errors import RequestError

TIMEOUT_S: Final = 45.0  # the relay gives each receiver 30 s


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai notify`."""
    parser.epilog = "example:\n  wai notify test"
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    test = actions.add_parser(
        "test", help="send a test to each receiver of [notify]; exit status 1 if one takes none"
    )
    test.add_argument("--json", action="store_true", help="print JSON, for scripts")
    add_target_options(test)
    test.set_defaults(run=_test)


def _test(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed), TIMEOUT_S) as relay:
        answer = relay.post("/notify/test")
    results = read_as(NotifyResults, answer).data
    if not results:
        raise RequestError(
            "nobody is told of problems: put [notify] into the relay's settings, and reload it"
        )
    if parsed.json:
        print_json(answer["data"])
    else:
        for one in results:
            say(
                f"problem  {one.receiver}: {one.error}" if one.error else f"ok       {one.receiver}"
            )
    return 1 if any(one.error for one in results) else 0
