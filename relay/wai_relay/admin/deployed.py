"""What is deployed, as the nodes tell of it: the deployments' part of the live feed.

A node tells of each change by an EVENT "deployment" over its session (SPEC section 6), a download's
progress among them; what it told while nobody heard it, the relay asks for: `model.list`, once for
each time that the node came. Asking is only done while somebody looks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from wai_protocol.errors import Fault, WaiError

from .context import LiveNode
from .model_types import DeploymentView

log = logging.getLogger("wai.admin")

EVENT: Final = "deployment"
LIST_TIMEOUT_S: Final = 5.0
"""For what the node knows by itself: one that does not answer by then is left out."""

MAX_PER_NODE: Final = 512  # as many models as a STATUS may have; more is a broken node
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
            view = view_of(node, value)
        except WaiError as error:
            log.warning("%s", error)
            return
        if view.state == _REMOVED:
            self.rows.pop(view.id, None)
        elif view.id in self.rows or len(self._of(node.record.id)) < MAX_PER_NODE:
            self.rows[view.id] = view

    def look(self, nodes: Iterable[LiveNode]) -> None:
        """Forget those that are gone, and ask those that came since they were asked last."""
        here = {node.record.id: node for node in nodes if node.state != "offline"}
        for node_id in [known for known in self._asked if known not in here]:
            del self._asked[node_id]
        for row_id in [known for known, row in self.rows.items() if row.node_id not in here]:
            del self.rows[row_id]
        for node_id, node in here.items():
            came = (node.told_by, node.reconnects, node.connected_at)
            if not (node.connected and node.record.may_deploy) or node_id in self._asking:
                continue
            if self._asked.get(node_id) != came:
                self._asked[node_id] = came
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
        for row_id in self._of(node.record.id):
            del self.rows[row_id]
        shown = [view for view in views if view.state != _REMOVED]
        self.rows.update((view.id, view) for view in shown[:MAX_PER_NODE])
        return views

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

    def _of(self, node_id: str) -> list[str]:
        return [row_id for row_id, row in self.rows.items() if row.node_id == node_id]


def views_of(node: LiveNode, listed: Any) -> list[DeploymentView]:
    """What a node listed, checked: a node's word is checked like anybody's. Raises `WaiError`."""
    rows = listed if isinstance(listed, list) else []
    return [view_of(node, row) for row in rows if isinstance(row, dict)]


def view_of(node: LiveNode, told: Any) -> DeploymentView:
    """One deployment that a node told of. Raises `WaiError`."""
    if not isinstance(told, dict):
        told = {}
    record = node.record
    row = {**told, "id": f"{record.id} {told.get('model')}", "node": record.name}
    return checked({**row, "node_id": record.id}, DeploymentView, node)  # type: ignore[no-any-return]


def checked(value: Any, kind: Any, node: LiveNode) -> Any:
    """What a node said, as `kind`. Raises `WaiError`: it makes no sense."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise WaiError(
            f"node {node.record.name} gave an answer that makes no sense: {error}", Fault.PROTOCOL
        ) from error
