"""Which lines of an inference server's output may be kept once it has requests to answer.

From then on llama-server prints parts of requests: grammars and schemas that it can't parse, bodies
that are no JSON, names of roles. So a line is kept only where it is one of those that say nothing
but figures. Until it is ready there is no request, and every line is kept.
"""

from __future__ import annotations

import re
from typing import Final

_NUMBER: Final = r"-?[\d.]+(?:e[+-]?\d+)?"
_NAMES: Final = r"(?:print_timing|launch_slot_|operator\(\)|release|update_slots|update_batch)"
_SLOT: Final = rf"slot +{_NAMES}: id +{_NUMBER} \| task +{_NUMBER} \| +"
_RATE: Final = rf"\( *{_NUMBER} ms per token, *{_NUMBER} tokens per second\)"
_FIGURES: Final = re.compile(
    rf"(?:{_NUMBER} [A-Z] )?(?:"
    rf"{_SLOT}(?:"
    rf"(?:prompt eval|eval|total) time = *{_NUMBER} ms / *{_NUMBER} tokens *(?:{_RATE})?"
    rf"|processing task, is_child = {_NUMBER}"
    rf"|(?:new prompt, )?n_ctx_slot = {_NUMBER}, n_keep = {_NUMBER},"
    rf" (?:task\.)?n_(?:prompt_)?tokens = {_NUMBER}"
    rf"|cached n_tokens = {_NUMBER}, memory_seq_rm \[{_NUMBER}, end\)"
    rf"|prompt processing progress, n_tokens = {_NUMBER}, batch\.n_tokens = {_NUMBER},"
    rf" progress = {_NUMBER}"
    rf"|(?:stop processing: n_tokens|graphs reused) = *{_NUMBER}(?:, truncated = {_NUMBER})?"
    rf")|srv +stop: cancel task, id_task = {_NUMBER}"
    rf"|srv +send_error: task id = {_NUMBER}, error: request \({_NUMBER} tokens\) exceeds the"
    rf" available context size \({_NUMBER} tokens\), try increasing it"
    rf")\s*"
)
# What a server says before it crashes; of such a line these words are kept, and nothing else of it.
_SIGNS: Final = (
    (
        re.compile(
            r"out of memory|failed to allocate|cudaMalloc|ErrorOutOfDeviceMemory|bad_alloc", re.I
        ),
        "out of memory",
    ),
    (re.compile(r"GGML_ASSERT\(.*\) failed"), "GGML_ASSERT() failed"),
    (re.compile(r"CUDA error|ROCm error|ErrorDeviceLost", re.I), "the graphics driver failed"),
)
LEFT_OUT: Final = "(lines are left out from here on: they may hold parts of requests)"


class ServedLines:
    """Decides on each line that a server with requests prints."""

    def __init__(self) -> None:
        self._told = False

    def kept(self, line: str) -> str | None:
        """What is kept of `line`; None for nothing. The first that is left out is said to be."""
        if _FIGURES.fullmatch(line):
            return line
        for pattern, words in _SIGNS:
            if pattern.search(line):
                return words
        if self._told:
            return None
        self._told = True
        return LEFT_OUT
