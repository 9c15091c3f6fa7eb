"""Chunks of a streamed chat completion, as a server sends them, and as none should."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st


def chunk(delta: dict[str, Any] | None = None, finish: Any = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({"choices": choices, **more}).encode() + b"\n\n"


def call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": more.pop("name")} if "name" in more else {})
    return {"tool_calls": [{"index": index, "function": function, **more}]}


USAGE = chunk(
    usage={
        "prompt_tokens": 30,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 10},
    }
)
DONE = b"data: [DONE]\n\n"
TOOLS = [
    chunk({"role": "assistant", "content": None}),
    chunk({"reasoning_content": "hm"}),
    chunk({"content": "Let "}),
    chunk({"content": "me."}),
    chunk(call(0, "", id="call_a", name="ls")),
    chunk(call(0, '{"path":')),
    chunk(call(1, '{"q":1}', id="call_b", name="find")),
    chunk(call(0, '"/"}')),
    chunk({}, "tool_calls"),
    USAGE,
    DONE,
]

NAMES = [
    "choices",
    "delta",
    "content",
    "tool_calls",
    "function",
    "index",
    "id",
    "name",
    "arguments",
    "finish_reason",
    "usage",
    "prompt_tokens",
    "reasoning",
    "error",
    "message",
    "function_call",
    "timings",
]

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=12,
)
HOSTILE = st.one_of(
    ANYTHING.map(lambda value: b"data: " + json.dumps(value).encode() + b"\n\n"),
    ANYTHING.map(lambda value: chunk({"tool_calls": value, "content": value})),
    ANYTHING.map(lambda value: chunk({"tool_calls": [value]}, finish=value)),
    st.sampled_from([*TOOLS, b": comment\n\n", b"data\n\n", b"\n\n", b"event: x\n\n", DONE]),
)
"""A chunk of a server that keeps to nothing."""
