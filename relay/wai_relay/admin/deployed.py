"""What is deployed, as the nodes tell of it: the deployments' part of the live feed.

A node tells of each change by an EVENT "deployment" over its session (SPEC section 6), a download's
progress among them; what it told while nobody heard it, the relay asks for: `model.list`, once for
each time that the node came, when somebody looks: the live feed while it has listeners, and every
few seconds the watch of problems.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from wai_api.models import DeploymentView
from wai_protocol.errors import Fault, WaiError
from wai_protocol.status import MAX_COUNT, MAX_NAME_CHARS

from .live_nodes import LiveNode, came

log = logging.getLogger("wai.admin")

EVENT: Final = "deployment"
LIST_TIMEOUT_S: Final = 5.0
"""For what the node knows by itself: one that does not answer by then is left out."""

MAX_PER_NODE: Final = 512  # as many models as a STATUS may have; more is a broken node
MAX_NODE_BYTES: Final = 1024 * 1024
"""What all rows of one node may take in memory: 512 of the usual 1 KiB, or fewer with long logs."""

MAX_TEXT_CHARS: Final = 1024  # a reason in two sentences, or a line of a log; more is cut off
MAX_LOG_LINES: Final = 32  # a node sends 12
_REMOVED: Final = "absent"


class Deployed:
    """Rows by id; a row is replaced when it changes, so that who looks compares identities.

    `hear` takes a node's EVENTs; `look` finds what to ask. Belongs to one loop; `close` it.
    """

    def __init__(self) -> None:
        self.rows: dict[str, DeploymentView] = {}
        self._asked: dict[str, tuple[Any, ...]] = {}
        """By node: when it came that it was asked about last."""
        self._asking: dict[str, asyncio.Task[None]] = {}

    def hear(self, node: LiveNode, name: str, value: Any) -> None:
        """A node told of something on its own."""
        if name != EVENT or not node.record.may_deploy:
            return
        try:
            view = deployment_view(node, value)
        except WaiError as error:
            log.warning("%s", error)
            return
        self.rows.pop(view.id, None)
        if view.state != _REMOVED:
            self._keep(node, [view])

    def look(self, nodes: Iterable[LiveNode]) -> None:
        """Forget those that are gone, and ask those that came since they were asked last."""
        here = {node.record.id: node for node in nodes if node.state != "offline"}
        for node_id in [known for known in self._asked if known not in here]:
            del self._asked[node_id]
        for row_id in [known for known, row in self.rows.items() if row.node_id not in here]:
            del self.rows[row_id]
        for node_id, node in here.items():
            if not (node.connected and node.record.may_deploy) or node_id in self._asking:
                continue
            if self._asked.get(node_id) != came(node):
                self._asked[node_id] = came(node)
                self._asking[node_id] = asyncio.get_running_loop().create_task(self._ask(node))

    def ask_again(self) -> None:
        """Nobody looked for a while: what was heard meanwhile may not be all."""
        self._asked.clear()

    async def ask(self, node: LiveNode) -> list[DeploymentView]:
        """What is deployed on `node`, by its own word; it is known here from now on.

        Raises `WaiError`.
        """
        listed = await node.call("model.list", {}, timeout_s=LIST_TIMEOUT_S)
        views = views_of(node, listed)
        for row in self._of(node.record.id):
            del self.rows[row.id]
        self._keep(node, [view for view in views if view.state != _REMOVED])
        return views

    def _keep(self, node: LiveNode, views: list[DeploymentView]) -> None:
        """Take `views` in, as far as they and the node's other rows are within the bounds."""
        known = self._of(node.record.id)
        count, size = len(known), sum(map(_bytes_of, known))
        for number, view in enumerate(views):
            count += view.id not in self.rows
            size += _bytes_of(view)
            if count > MAX_PER_NODE or size > MAX_NODE_BYTES:
                left_out = len(views) - number
                log.warning(
                    "node %s tells of more deployments than are shown: at most %d in %d KiB; "
                    "%d left out",
                    *(node.record.name, MAX_PER_NODE, MAX_NODE_BYTES // 1024, left_out),
                )
                return
            self.rows[view.id] = view

    def close(self) -> None:
        """Ask no more."""
        for task in self._asking.values():
            task.cancel()

    async def _ask(self, node: LiveNode) -> None:
        try:
            await self.ask(node)
        except WaiError as error:  # it went away just now, or is older than deployments
            log.debug("node %s does not say what is deployed: %s", node.record.name, error)
        finally:
            del self._asking[node.record.id]

    def _of(self, node_id: str) -> list[DeploymentView]:
        return [row for row in self.rows.values() if row.node_id == node_id]


def _bytes_of(view: DeploymentView) -> int:
    """About what a row takes in memory, less what all rows of its node share."""
    texts = (view.id, view.model, view.state, view.reason, view.swap_error, *view.log_tail)
    return _ROW_BYTES + sum(map(sys.getsizeof, texts))


_ROW_BYTES: Final = 512  # the row, its progress, its numbers and its place in two maps


def views_of(node: LiveNode, listed: Any) -> list[DeploymentView]:
    """What a node listed, checked: a node's word is checked like anybody's. Raises `WaiError`."""
    rows = listed if isinstance(listed, list) else []
    return [deployment_view(node, row) for row in rows if isinstance(row, dict)]


def deployment_view(node: LiveNode, told: Any) -> DeploymentView:
    """One deployment that a node told of. Raises `WaiError`."""
    if not isinstance(told, dict):
        told = {}
    record = node.record
    row = {**told, "id": "", "node": record.name, "node_id": record.id}
    view: DeploymentView = checked(row, DeploymentView, node)
    counts = [view.context, view.context_served or 0, view.slots, view.size_bytes, view.in_flight]
    counts += [view.estimated_bytes or 0, view.seen_bytes or 0]
    if len(view.model) > MAX_NAME_CHARS or not all(0 <= count <= MAX_COUNT for count in counts):
        raise WaiError(
            f"node {record.name} tells of a deployment whose name or numbers are out of range",
            Fault.PROTOCOL,
        )
    return msgspec.structs.replace(
        view,
        id=f"{record.id} {view.model}",
        state=view.state[:MAX_NAME_CHARS],
        reason=view.reason[:MAX_TEXT_CHARS],
        swap_error=view.swap_error[:MAX_TEXT_CHARS],
        served_by=view.served_by[:MAX_NAME_CHARS],
        called=view.called[:MAX_NAME_CHARS],
        lora=view.lora[:MAX_NAME_CHARS],
        draft=view.draft[:MAX_NAME_CHARS],
        alias=view.alias[:MAX_NAME_CHARS],
        log_tail=tuple(line[:MAX_TEXT_CHARS] for line in view.log_tail[-MAX_LOG_LINES:]),
    )


def checked(value: Any, kind: Any, node: LiveNode) -> Any:
    """What a node said, as `kind`. Raises `WaiError`: it makes no sense."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise WaiError(
            f"node {node.record.name} gave an answer that makes no sense: {error}", Fault.PROTOCOL
        ) from error
