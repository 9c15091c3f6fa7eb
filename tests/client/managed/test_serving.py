"""A model that is ready is told so at once, and each request afterwards changes nothing of that."""

from __future__ import annotations

from typing import Any, cast

import pytest
from msgspec.structs import replace

from tests.client.managed.test_news import READY
from wai_node.managed.deployment import State
from wai_node.managed.entry import DeploymentEvent, DeploymentStatus
from wai_node.managed.serving import ManagedModels
from wai_node.managed.supervisor import Supervisor
from wai_node.upstreams.board import Board
from wai_node.upstreams.watch import Watch

pytestmark = pytest.mark.anyio


class Nothing:
    """A supervisor whose server was not asked yet."""

    def serving(self) -> dict[str, Any]:
        return {}

    def deployed(self) -> list[DeploymentStatus]:
        return [READY]


async def test_who_hears_that_a_model_is_ready_can_call_it() -> None:
    board = Board()
    watch = Watch(board, lambda status: None)
    models = ManagedModels(watch)

    def hear(status: DeploymentStatus) -> bool | None:
        models.on_event(cast(Supervisor, Nothing()), DeploymentEvent("state", status))
        told = board.status().models
        return told[0].ready if told else None

    assert hear(replace(READY, state=State.STARTING, context_served=None)) is None
    assert hear(READY) is True
    assert (board.status().models[0].loaded, board.status().models[0].load_ms) == (True, None)
    [upstream] = board.upstreams
    busy = replace(board.status().models[0], slots_busy=2)
    board.probed(upstream, replace(await upstream.probe(), models=(busy,), counted=True))
    assert hear(replace(READY, in_flight=1)) is True
    assert board.status().models[0].slots_busy == 2  # what the server said is not forgotten
    assert hear(replace(READY, state=State.DRAINING)) is True
    [swapping] = (await upstream.probe()).models
    assert swapping.ready
