"""Models that STATUS cannot carry are counted, of one upstream and of all together."""

from __future__ import annotations

import pytest

from wai_node.upstreams.board import Board
from wai_node.upstreams.openai import OpenAIUpstream
from wai_node.upstreams.upstream import Probe
from wai_protocol.status import MAX_MODELS, MAX_NAME_CHARS, NodeStatus

pytestmark = pytest.mark.anyio


def upstream(port: int, board: Board, *ids: str) -> None:
    made = OpenAIUpstream(f"http://127.0.0.1:{port}")
    board.add(made)
    board.probed(made, Probe(made.models([made.model(model_id) for model_id in ids])))


async def test_what_one_upstream_has_too_many_of_is_counted() -> None:
    board = Board()
    upstream(8001, board, *(f"m{n}" for n in range(MAX_MODELS + 88)))
    status = board.status()
    assert (len(status.models), status.models_left_out) == (MAX_MODELS, 88)
    assert NodeStatus.from_wire(status.to_wire()).models_left_out == 88


async def test_what_all_upstreams_together_have_too_many_of_is_counted() -> None:
    board = Board()
    upstream(8001, board, *(f"a{n}" for n in range(300)), "x" * (MAX_NAME_CHARS + 1))
    upstream(8002, board, *(f"b{n}" for n in range(300)))
    assert board.status().models_left_out == 600 - MAX_MODELS + 1


async def test_a_node_whose_models_all_fit_says_nothing() -> None:
    board = Board()
    upstream(8001, board, *(f"m{n}" for n in range(MAX_MODELS)))
    assert "models_left_out" not in board.status().detail
