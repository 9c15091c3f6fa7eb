"""What is wrong with the nodes, the inference servers beside them and what is deployed there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final, Protocol

from wai_api.health import ProblemView
from wai_api.models import DeploymentView
from wai_protocol.status import FAILED_MODELS, NodeStatus
from wai_relay.fleet.registry import NodeRecord
from wai_relay.observe.outcomes import Failing

from .problem import RELAY, problem

_FAILED: Final = "failed"
_IN_WORDS: Final = {
    "upstream_broke": "the server answered with an error, or broke off",
    "upstream_timeout": "the server did not answer in time",
    "upstream_unreachable": "the server could not be reached",
}


class WatchedNode(Protocol):
    """A node, as far as it is watched (`fleet.node.Node`)."""

    @property
    def record(self) -> NodeRecord:
        """Who it is."""

    @property
    def state(self) -> str:
        """ready, starting, draining, reconnecting or offline."""

    @property
    def status(self) -> NodeStatus:
        """What it said last of itself."""

    @property
    def copied(self) -> bool:
        """Whether a second machine with its identity was found lately."""


def node_problems(nodes: Collection[WatchedNode]) -> Iterator[ProblemView]:
    """Say what is wrong with each."""
    if not nodes:
        yield problem(
            *("setup", RELAY, "no node"),
            "no node has joined",
            "`wai invite create` here prints what to run on the machine with the model",
        )
    for node in nodes:
        yield from _of_node(node)


def failing_problems(
    failing: Iterable[Failing], nodes: Iterable[WatchedNode], told: Collection[str]
) -> Iterator[ProblemView]:
    """Upstreams that only fail. `told`: the subjects whose trouble is told already; what they serve
    fails because of that."""
    there = {node.record.name for node in nodes if node.state == "ready"}
    for one in failing:
        provider = ":" in one.node
        if one.node in told or not (provider or one.node in there):
            continue
        why = _IN_WORDS.get(one.fault, one.fault)
        yield problem(
            *("provider" if provider else "upstream", one.node, f"fails {one.model}"),
            f"the last {one.count} requests for {one.model} failed there: {why}",
            "`wai requests list --failed` shows them; look at the log of the inference server that"
            " serves this model, and restart it"
            if not provider
            else "`wai requests list --failed` shows them; see whether the provider has an outage",
        )


def deployment_problems(deployed: Iterable[DeploymentView]) -> Iterator[ProblemView]:
    """What failed, and what was taken back."""
    for view in deployed:
        subject = f"{view.model} on {view.node}"
        if view.state == _FAILED:
            yield problem(
                *("deployment", subject, "failed"),
                f"it failed: {view.reason}",
                "the Models page has its log, and deploys it again; so does `wai model logs`",
            )
        elif view.swap_error:
            yield problem(
                *("deployment", subject, "taken back"),
                f"its last change was taken back: {view.swap_error}",
                "it serves as it did before; ask for less context, or for other options",
            )


def _of_node(node: WatchedNode) -> Iterator[ProblemView]:
    name, state = node.record.name, node.state
    if node.copied:
        yield problem(
            *("node", name, "copied"),
            "a second machine uses its identity, and is refused",
            "its data folder was copied: join that machine with a new invite and a fresh folder",
        )
    if state == "offline":
        yield problem(
            *("node", name, "away"),
            "it is offline",
            "start it on its machine: `systemctl start wai-node`, or `wai node run`; if it runs"
            " there, `wai doctor` on that machine says why it does not come",
        )
    elif state == "reconnecting":
        yield problem(
            *("node", name, "away"),
            "its connection was lost, and it has not come back yet",
            "wait a few seconds; then look at its machine and its network",
        )
    else:
        yield from _told_by(node, name)


def _told_by(node: WatchedNode, name: str) -> Iterator[ProblemView]:
    """What a node that is there says of itself."""
    down = 0
    for server, entry in _entries(node.status.detail, "upstreams"):
        if isinstance(entry, dict) and entry.get("up") is False:
            down += 1
            yield problem(
                *("upstream", name, f"down {server}"),
                f"{server} is not used: {entry.get('error')}",
                "see that this server runs, and that the address and the key that the node has for"
                " it are right",
            )
    for part, why in _entries(node.status.detail, "parts_down"):
        yield problem(
            *("node", name, f"part {part}"),
            f"its part {part!r} fails and is started again: {why}",
            "the node's log says more: `journalctl -u wai-node` on its machine",
        )
    engine = dict(_entries(node.status.detail, "engine")).get("problem")
    if isinstance(engine, str) and engine:
        yield problem(
            *("node", name, "engine"),
            engine,
            "`wai node engine list` on its machine shows what there is",
        )
    if node.status.models_left_out:
        yield problem(
            *("node", name, "left out"),
            f"{node.status.models_left_out} of its models are not served",
            "a node can tell of 512 models at most; put the others on another node",
        )
    failed = any(_entries(node.status.detail, FAILED_MODELS))  # told as deployments' problems
    if not node.status.models and not down and not failed and node.state == "ready":
        yield problem(
            *("node", name, "no model"),
            "it serves no model",
            "start an inference server there, give the node --upstream URL, or deploy a model",
        )


def _entries(detail: dict[str, Any], name: str) -> Iterable[tuple[str, Any]]:
    """The items of a map in what a node tells; none where it is no map."""
    found = detail.get(name)
    return [(str(key), value) for key, value in found.items()] if isinstance(found, dict) else []
