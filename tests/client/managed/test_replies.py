"""Whatever a node has to tell fits a frame, and what is left out is the least wanted."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from wai_node.managed.replies import REPLY_BYTES, first_rows, newest_lines, shortened
from wai_node.managed.server.log_file import LINE_CHARS
from wai_node.managed.supervisor import MAX_LOG_LINES
from wai_node.managed.wanted import MAX_MODELS
from wai_protocol.frames import Reply, encode
from wai_protocol.limits import MAX_FRAME_BYTES


def reply_bytes(value: Any) -> int:
    return len(encode(Reply(2**40, ok=True, value=value)))


@pytest.mark.parametrize("char", ["x", "é", "語", "😀"])
def test_the_longest_log_fits_and_its_end_is_kept(char: str) -> None:
    lines = [f"{i:04}" + char * (LINE_CHARS - 4) for i in range(MAX_LOG_LINES)]
    kept = newest_lines(lines)
    assert reply_bytes(kept) <= MAX_FRAME_BYTES
    assert kept[1:] == lines[1 - len(kept) :]
    assert kept[0] == f"({1001 - len(kept)} older lines are left out: an answer holds no more)"


def test_a_log_that_fits_is_whole() -> None:
    lines = ["llama_model_loader: loaded meta data"] * MAX_LOG_LINES
    assert newest_lines(lines) == lines
    assert newest_lines([]) == []


def test_a_long_list_keeps_its_best_rows() -> None:
    rows = [{"quant": f"Q{i}", "reason": "r" * 300} for i in range(2000)]
    kept = first_rows(rows)
    assert reply_bytes(kept) <= MAX_FRAME_BYTES
    assert kept == rows[: len(kept)]
    assert len(msgpack.packb(rows[: len(kept) + 1])) > REPLY_BYTES
    assert first_rows(rows[:10]) == rows[:10]


def test_as_many_failed_models_as_a_node_may_have_are_all_listed() -> None:
    row = {
        "model": "p" * 96 + "/" + "n" * 96 + ":" + "q" * 96,
        "state": "failed",
        "reason": "語" * 2000,
        "swap_error": "語" * 2000,
        "log_tail": ["語" * 500] * 12,
    }
    kept = shortened([row] * MAX_MODELS)
    assert len(kept) == MAX_MODELS
    assert reply_bytes(kept) <= MAX_FRAME_BYTES
    assert shortened([row] * 2) == [row] * 2
