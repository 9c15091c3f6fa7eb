"""`wai status`: what runs and what is wrong, on one screen; exit status 1 if anything is wrong."""

from __future__ import annotations

import argparse

from wai_api.health import ProblemList
from wai_api.nodes import NodeList, NodeView
from wai_api.relay import WhoAmI
from wai_api.requests import RequestList
from wai_cli.client.admin_client import AdminClient
from wai_cli.client.answers import read_as
from wai_cli.client.target import add_target_options, find_target
from wai_cli.output.tables import print_json, print_table, say


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `wai status`."""
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    add_target_options(parser)
    parser.set_defaults(run=_status)


def _status(parsed: argparse.Namespace) -> int:
    with AdminClient(find_target(parsed)) as relay:
        who = relay.get("/whoami")
        nodes = relay.get("/nodes")
        requests = relay.get("/requests")
        problems = relay.get("/problems")
    if parsed.json:
        print_json({"relay": who, "nodes": nodes["data"], "problems": problems["data"]})
    else:
        running = len(read_as(RequestList, requests).data)
        known = read_as(WhoAmI, who)
        say(f"relay {known.version} at {known.url}, {running} requests run now")
        print()
        print_table(
            ("NODE", "STATE", "MODELS"),
            [_cells(node) for node in read_as(NodeList, nodes).data],
            empty="no nodes",
        )
        print()
        _print_problems(read_as(ProblemList, problems))
    return 1 if problems["data"] else 0


def _cells(node: NodeView) -> tuple[str, str, str]:
    ready = [model.id for model in node.serving if model.ready]
    return node.name, node.state, ", ".join(ready) or "-"


def _print_problems(problems: ProblemList) -> None:
    if not problems.data:
        print("nothing is wrong")
    for problem in problems.data:
        say(f"problem: {problem.subject}: {problem.text}")
        print(f"         → {problem.advice}")
