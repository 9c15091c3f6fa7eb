"""Callers that read an answer of known content, and report every fault in it."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .caller import chat, events, request
from .cluster import Cluster
from .counting_upstream import MODEL

_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Counted:
    """One answer as its caller saw it. `numbers` is what was counted, in the order it came.

    `refusal`: an error status and its code, before any answer. `error`: the code of an error event
    in the middle. `broken`: how it ended otherwise, if not with `[DONE]`.
    """

    wanted: int
    began_at: float = field(default_factory=time.monotonic)
    ended_at: float = 0.0
    numbers: list[int] = field(default_factory=list)
    finished: bool = False
    refusal: str = ""
    error: str = ""
    broken: str = ""
    node: str = ""
    longest_pause_s: float = 0.0

    @property
    def lost(self) -> int:
        """How many numbers are missing below the last one, or below `wanted` if it finished."""
        due = self.wanted if self.finished else max(self.numbers, default=-1) + 1
        return due - len(set(self.numbers) & set(range(due)))

    @property
    def repeated(self) -> int:
        """How many numbers came more than once, or above `wanted`."""
        return len(self.numbers) - len(set(self.numbers) & set(range(self.wanted)))

    @property
    def reordered(self) -> int:
        """How many numbers came after a higher one."""
        return sum(b < a for a, b in zip(self.numbers, self.numbers[1:], strict=False))

    @property
    def whole(self) -> bool:
        """Whether every byte came once, in order, to a clean end."""
        return self.finished and self.numbers == list(range(self.wanted))


def count(
    cluster: Cluster,
    secret: str,
    wanted: int,
    *,
    headers: Mapping[str, str] | None = None,
    on_number: Callable[[int], None] | None = None,
    timeout_s: float = _TIMEOUT_S,
    **fields: Any,
) -> Counted:
    """Ask the counting upstream to count to `wanted`; `on_number` is called with each number."""
    counted = Counted(wanted)
    sent = {"Authorization": f"Bearer {secret}", **(headers or {})}
    body = chat(MODEL, stream=True, max_tokens=wanted, **fields)
    try:
        with request(cluster, "/v1/chat/completions", body, sent, timeout_s=timeout_s) as answer:
            counted.node = answer.headers["X-WAI-Node"] or ""
            if answer.status != 200:
                counted.refusal = f"{answer.status} {_code(json.loads(answer.read()))}"
            else:
                _read(answer, counted, on_number)
    except (OSError, http.client.HTTPException, ValueError) as error:
        counted.broken = repr(error)
    counted.ended_at = time.monotonic()
    return counted


def _read(
    answer: http.client.HTTPResponse, counted: Counted, on_number: Callable[[int], None] | None
) -> None:
    last_at = time.monotonic()
    for text in events(answer):
        if text == "[DONE]":
            counted.finished = True
            continue
        chunk = json.loads(text)
        if "error" in chunk:
            counted.error = _code(chunk)
            continue
        now = time.monotonic()
        counted.longest_pause_s = max(counted.longest_pause_s, now - last_at)
        last_at = now
        for word in (chunk["choices"][0]["delta"].get("content") or "").split():
            counted.numbers.append(int(word))
            if on_number is not None:
                on_number(int(word))
    if not counted.finished and not counted.error:
        counted.broken = "a clean-looking end without [DONE]"


def _code(answer: dict[str, Any]) -> str:
    code: str = answer["error"]["code"]
    return code
