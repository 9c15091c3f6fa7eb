"""What is wrong now: with the relay, its nodes, their servers and the models deployed on them.

One list for everybody who asks: the Overview page, `wai status` and `wai doctor`.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from typing import Any, Final

from wai_api.health import ProblemList, ProblemView
from wai_api.models import DeploymentView
from wai_protocol.status import FAILED_MODELS

from .condition import RelayCondition
from .context import Context
from .deployments import all_deployed
from .endpoint import Call, Endpoint
from .live_nodes import LiveNode

CERTIFICATE_LATE_S: Final = 3 * 86400.0
"""A certificate that ends sooner was not renewed: renewal begins weeks before."""

LOW_DISK_BYTES: Final = 256 << 20
"""What usage may need while the database takes none, and some room for the database itself."""

MAX_SHOWN_CHARS: Final = 300  # of a text that a node sent
_FAILED: Final = "failed"


async def list_problems(context: Context, call: Call) -> ProblemList:
    """The relay's own first."""
    nodes = list(context.fleet.nodes())
    found = [
        *_of_relay(context.condition, context.clock()),
        *_of_setup(nodes),
        *(problem for node in nodes for problem in _of_node(node)),
        *_of_deployments(await all_deployed(context)),
    ]
    return ProblemList(tuple(found))


def _of_relay(condition: RelayCondition, now: float) -> Iterator[ProblemView]:
    ends = condition.certificate_ends()
    if ends == 0:
        yield ProblemView(
            *("certificate", "relay", "the authority has not given a certificate yet"),
            "the relay's log (wai.acme) says why; port 443 of the name must lead here, or port 80",
        )
    elif ends is not None and ends - now < CERTIFICATE_LATE_S:
        day = datetime.datetime.fromtimestamp(ends, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        does = "ended" if ends <= now else "ends"
        yield ProblemView(
            *("certificate", "relay", f"the certificate {does} on {day}, and was not renewed"),
            "put a new one into the files that --tls names, or see why the relay's log (wai.tls,"
            " wai.acme) says that it could not renew it",
        )
    usage = condition.usage()
    if usage.behind:
        yield ProblemView(
            *("database", "relay"),
            f"the database takes no usage; {usage.unwritten} requests wait to be written",
            "free some space, or end the program that locks relay.db; nothing is lost meanwhile",
        )
    if usage.lost:
        yield ProblemView(
            *("database", "relay", f"the usage of {usage.lost} requests is lost since the start"),
            "usage and monthly limits are too low by that; see the relay's log (wai.usage)",
        )
    free = condition.free_bytes()
    if free is not None and free < LOW_DISK_BYTES:
        yield ProblemView(
            *("disk", "relay", f"the disk of the data folder has {free >> 20} MiB left"),
            f"free some space on the disk of {condition.folder}",
        )


def _of_setup(nodes: list[LiveNode]) -> Iterator[ProblemView]:
    if not nodes:
        yield ProblemView(
            *("setup", "relay", "no node has joined"),
            "`wai invite create` here prints what to run on the machine with the model",
        )


def _of_node(node: LiveNode) -> Iterator[ProblemView]:
    name, state = node.record.name, node.state
    if node.copied:
        yield ProblemView(
            *("node", name, "a second machine uses its identity, and is refused"),
            "its data folder was copied: join that machine with a new invite and a fresh folder",
        )
    if state == "offline":
        yield ProblemView(
            *("node", name, "it is offline"),
            "start it on its machine: `systemctl start wai-node`, or `wai node run`; if it runs"
            " there, `wai doctor` on that machine says why it does not come",
        )
    elif state == "reconnecting":
        yield ProblemView(
            *("node", name, "its connection was lost, and it has not come back yet"),
            "wait a few seconds; then look at its machine and its network",
        )
    else:
        yield from _told_by(node, name)


def _told_by(node: LiveNode, name: str) -> Iterator[ProblemView]:
    """What a node that is there says of itself."""
    down = 0
    for server, entry in _entries(node.status.detail, "upstreams"):
        if isinstance(entry, dict) and entry.get("up") is False:
            down += 1
            yield ProblemView(
                *("upstream", name, _short(f"{server} is not used: {entry.get('error')}")),
                "see that this server runs, and that the address and the key that the node has for"
                " it are right",
            )
    for part, why in _entries(node.status.detail, "parts_down"):
        yield ProblemView(
            *("node", name, _short(f"its part {part!r} fails and is started again: {why}")),
            "the node's log says more: `journalctl -u wai-node` on its machine",
        )
    engine = dict(_entries(node.status.detail, "engine")).get("problem")
    if isinstance(engine, str) and engine:
        yield ProblemView(
            *("node", name, _short(engine)),
            "`wai node engine list` on its machine shows what there is",
        )
    if node.status.models_left_out:
        yield ProblemView(
            *("node", name, f"{node.status.models_left_out} of its models are not served"),
            "a node can tell of 512 models at most; put the others on another node",
        )
    failed = any(_entries(node.status.detail, FAILED_MODELS))  # told as deployments' problems
    if not node.status.models and not down and not failed and node.state == "ready":
        yield ProblemView(
            *("node", name, "it serves no model"),
            "start an inference server there, give the node --upstream URL, or deploy a model",
        )


def _of_deployments(deployed: Iterable[DeploymentView]) -> Iterator[ProblemView]:
    for view in deployed:
        if view.state == _FAILED:
            yield ProblemView(
                *(
                    "deployment",
                    f"{view.model} on {view.node}",
                    _short(f"it failed: {view.reason}"),
                ),
                "the Models page has its log, and deploys it again; so does `wai model logs`",
            )
        elif view.swap_error:
            text = f"its last change was taken back: {view.swap_error}"
            yield ProblemView(
                *("deployment", f"{view.model} on {view.node}", _short(text)),
                "it serves as it did before; ask for less context, or for other options",
            )


def _entries(detail: dict[str, Any], name: str) -> Iterable[tuple[str, Any]]:
    """The items of a map in what a node tells; none where it is no map."""
    found = detail.get(name)
    return [(str(key), value) for key, value in found.items()] if isinstance(found, dict) else []


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"


ENDPOINTS: Final = (
    Endpoint("GET", "/problems", list_problems, "Say what is wrong now", ProblemList),
)
