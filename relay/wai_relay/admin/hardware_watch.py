"""While somebody looks at the live feed, ask the nodes to tell of their machines each second.

One asking is good for half a minute, so that a relay that goes away leaves no node busy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from wai_protocol.errors import Fault, WaiError

from .live_nodes import LiveNode, came

METHOD: Final = "hardware.watch"
ASK_EVERY_S: Final = 20.0
GOOD_FOR_S: Final = 30.0
CALL_TIMEOUT_S: Final = 5.0

log = logging.getLogger("wai.admin")


class HardwareWatch:
    """Asks those that are connected. Belongs to one loop; `close` it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked_at: dict[str, float] = {}
        self._older: dict[str, tuple[Any, ...]] = {}
        """Nodes that do not know the call, with when they came."""
        self._asking: set[asyncio.Task[None]] = set()

    def look(self, nodes: Iterable[LiveNode]) -> None:
        """Ask each node whose last asking will soon be over."""
        now = self._clock()
        here = {node.record.id: node for node in nodes if node.connected}
        for gone in self._asked_at.keys() - here.keys():
            del self._asked_at[gone]
        for gone in self._older.keys() - here.keys():
            del self._older[gone]
        for node_id, node in here.items():
            if now - self._asked_at.get(node_id, float("-inf")) < ASK_EVERY_S:
                continue
            if self._older.get(node_id) == came(node):
                continue
            self._asked_at[node_id] = now
            task = asyncio.get_running_loop().create_task(self._ask(node))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    def close(self) -> None:
        """Ask no more."""
        for task in self._asking:
            task.cancel()

    async def _ask(self, node: LiveNode) -> None:
        try:
            await node.call(METHOD, {"seconds": GOOD_FOR_S}, timeout_s=CALL_TIMEOUT_S)
        except WaiError as error:
            if error.fault is Fault.ROUTE_REFUSED:
                self._older[node.record.id] = came(node)
            log.debug("node %s is not watched: %s", node.record.name, error)
