"""`wai node list|status|drain|undrain|slots|rename|remove|logs`: the nodes of a relay."""

from __future__ import annotations

import argparse
from typing import Any
from urllib.parse import quote

from wai_api.models import DeploymentList
from wai_api.nodes import ModelView, NodeList, NodeView
from wai_cli.client.admin_client import AdminClient
from wai_cli.client.answers import read_as
from wai_cli.client.target import find_target
from wai_cli.options.values import NONE
from wai_cli.output.tables import print_json, print_lines, print_table, say, time_text

from .model import read_log


def list_nodes(parsed: argparse.Namespace) -> int:
    """Print the nodes that have joined."""
    with AdminClient(find_target(parsed)) as relay:
        answer = relay.get("/nodes")
    if parsed.json:
        print_json(answer["data"])
        return 0
    nodes = read_as(NodeList, answer).data
    print_table(
        ("NAME", "STATE", "SLOTS", "QUEUE", "MODELS"),
        [(n.name, n.state, _slots(n), n.queued, ", ".join(n.models)) for n in nodes],
        empty="no nodes; let one join with `wai invite create`",
    )
    for node in nodes:
        _say_parts_down(node)
        _say_left_out(node)
    return 0


def status(parsed: argparse.Namespace) -> int:
    """Print one node with the models that it serves."""
    with AdminClient(find_target(parsed)) as relay:
        answer = relay.get(_path(parsed.name))
    if parsed.json:
        print_json(answer)
        return 0
    node = _read(answer)
    say(f"{node.name} ({node.id}): {node.state}")
    if node.copied:
        say("a second machine uses its identity, and is refused: join that with a new invite")
    say(f"joined {time_text(node.joined_at)}, {node.reconnects} reconnects")
    print_table(
        ("MODEL", "UPSTREAM", "CONTEXT", "SLOTS", "QUEUE", "TOKENS/S"),
        [
            (m.id, m.upstream, m.context_tokens, _slots(m), m.queued, m.decode_tps)
            for m in node.serving
        ],
        empty="it serves no model now",
    )
    for server in node.detail.get("waiting", []):
        say(f"{server} is not used: on its machine, see `wai node upstream list`")
    _say_upstreams_down(node)
    _say_parts_down(node)
    _say_left_out(node)
    return 0


def _say_upstreams_down(node: NodeView) -> None:
    """Print which servers a node can't use, and why."""
    told = node.detail.get("upstreams")
    for name, one in told.items() if isinstance(told, dict) else ():
        if isinstance(one, dict) and one.get("up") is False:
            say(f"{name} is not used: {one.get('error')}")


def _read(answer: Any) -> NodeView:
    return read_as(NodeView, answer)


def _say_parts_down(node: NodeView) -> None:
    """Print which parts of a node have failed; each is being started again."""
    down = node.detail.get("parts_down")
    for name, why in down.items() if isinstance(down, dict) else ():
        say(f"its part {name!r} fails and is started again ({why}): the node's log says more")


def _say_left_out(node: NodeView) -> None:
    """Print how many models a node cannot report, because it serves too many."""
    left_out = node.detail.get("models_left_out")
    if left_out:
        print(f"{node.name}: {left_out} more models are not served: it can tell of 512 at most")


def drain(parsed: argparse.Namespace) -> int:
    """Stop sending new requests to a node."""
    return _act(parsed, "POST", "/drain", "gets no new requests")


def undrain(parsed: argparse.Namespace) -> int:
    """Send requests to a drained node again."""
    return _act(parsed, "POST", "/undrain", "gets requests again")


def slots(parsed: argparse.Namespace) -> int:
    """Say how many requests a server that does not tell works on at once."""
    wanted = None if parsed.slots == NONE else parsed.slots
    with AdminClient(find_target(parsed)) as relay:
        answer = relay.patch(_path(parsed.name), {"slots": {parsed.upstream: wanted}})
    if parsed.json:
        print_json(answer)
    elif wanted is None:
        say(f"how much {parsed.upstream} works on at once is learned from now on")
    else:
        say(f"{parsed.upstream} works on {wanted} requests at once")
    return 0


def rename(parsed: argparse.Namespace) -> int:
    """Give a node another name."""
    with AdminClient(find_target(parsed)) as relay:
        answer = relay.patch(_path(parsed.name), {"name": parsed.new})
    if parsed.json:
        print_json(answer)
    else:
        say(f"{parsed.name} is called {_read(answer).name} from now on")
    return 0


def remove(parsed: argparse.Namespace) -> int:
    """Remove a node from the relay."""
    return _act(parsed, "DELETE", "", "is removed")


def _act(parsed: argparse.Namespace, method: str, suffix: str, done: str) -> int:
    path = _path(parsed.name) + suffix
    with AdminClient(find_target(parsed)) as relay:
        answer = relay.delete(path) if method == "DELETE" else relay.post(path)
    if parsed.json:
        print_json(answer)
    else:
        say(f"{_read(answer).name} {done}")
    return 0


def _slots(of: NodeView | ModelView) -> str:
    return f"{of.slots_busy}/{'?' if of.slots_total is None else of.slots_total}"


def logs(parsed: argparse.Namespace) -> int:
    """Print what a node's managed servers have logged."""
    with AdminClient(find_target(parsed)) as relay:
        name = _read(relay.get(_path(parsed.name))).name
        views = read_as(DeploymentList, relay.get("/deployments")).data
        deployed = [view.model for view in views if view.node == name]
        wanted = deployed if parsed.model is None else [parsed.model]
        found = {model: read_log(relay, parsed.name, model, parsed.lines) for model in wanted}
    if parsed.json:
        print_json(found)
        return 0
    for model, lines in found.items():
        say(f"== {model}")
        print_lines(lines)
    if not found:
        say(f"no models are deployed on {parsed.name}")
    return 0


def _path(name: str) -> str:
    return f"/nodes/{quote(name, safe='')}"
