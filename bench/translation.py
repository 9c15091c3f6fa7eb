"""What a translation costs: a request, and a chunk of its answer, in each dialect.

Run it with `python -m bench.translation`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Final

from wai_protocol.surface import ROUTES
from wai_relay.gateway.translation.table import translation_of
from wai_relay.gateway.translation.translation import Asked

ROUNDS: Final = 2000
TURNS: Final = 10
CHUNKS: Final = 1000
ASKED: Final = Asked("m", 1000, time.time, lambda: "abc")
TEXT: Final = "Some words of a conversation, as people write them to a model. " * 8


def _bodies() -> dict[str, dict[str, Any]]:
    turns = [{"role": role, "content": TEXT} for role in ("user", "assistant") * TURNS]
    schema = {"type": "object", "properties": {"path": {"type": "string"}}}
    tools = [{"name": f"tool{i}", "description": TEXT, "input_schema": schema} for i in range(5)]
    functions = [{"type": "function", "name": tool["name"], "parameters": schema} for tool in tools]
    return {
        "/v1/messages": {"max_tokens": 9, "system": TEXT, "messages": turns, "tools": tools},
        "/v1/responses": {"instructions": TEXT, "input": turns, "tools": functions},
        "/api/chat": {"messages": turns},
    }


def _us(call: Callable[[], object], rounds: int) -> float:
    started = time.perf_counter()
    for _ in range(rounds):
        call()
    return (time.perf_counter() - started) / rounds * 1e6


def main() -> None:
    """Print microseconds for a request and for a chunk."""
    choice = {"index": 0, "delta": {"content": " word"}, "finish_reason": None}
    head = {"id": "chatcmpl-abc", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    chunk = b"data: " + json.dumps(head | {"choices": [choice]}).encode() + b"\n\n"
    for path, body in _bodies().items():
        route = ROUTES.find("POST", path)
        assert route is not None
        data = json.dumps({"model": "m", "stream": True} | body).encode()
        request_us = _us(lambda: translation_of(route, data, ASKED), ROUNDS)  # noqa: B023
        stream = translation_of(route, data, ASKED).stream()
        chunk_us = _us(lambda: stream.feed(chunk), CHUNKS)  # noqa: B023
        print(f"{path}: request of {len(data)} bytes {request_us:.1f} µs, chunk {chunk_us:.1f} µs")


if __name__ == "__main__":
    main()
