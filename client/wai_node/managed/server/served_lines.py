"""Decide which lines of an inference server's output may be kept once it gets requests.

llama-server prints parts of requests: grammars and schemas that it can't parse, bodies that are no
JSON, names of roles. So only known lines are kept that contain nothing but figures. Before the
server is ready it has no requests, and every line is kept.
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
# Signs of a crash: if the pattern matches a line, the words beside it are kept, not the line.
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
    """Filters the lines of a server that gets requests."""

    def __init__(self) -> None:
        self._told = False

    def kept(self, line: str) -> str | None:
        """Return what is kept of `line`, or None. The first omission returns a note instead."""
        if _FIGURES.fullmatch(line):
            return line
        for pattern, words in _SIGNS:
            if pattern.search(line):
                return words
        if self._told:
            return None
        self._told = True
        return LEFT_OUT
