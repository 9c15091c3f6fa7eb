"""What a reader of the relay's live feed knows: events in, the state of this moment out. Pure.

The feed is `GET /admin/v1/events` (docs/http-api.md). It reads no socket and draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from wai_protocol.foreign_json import read_json

Row = dict[str, Any]
_KINDS: Final = ("nodes", "requests", "deployments")


def parse(lines: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    """The events in an SSE stream's lines: name and decoded data. Raises `WaiError` on data that
    is not JSON; comments give ("", None), so that who reads sees life."""
    name = ""
    for line in lines:
        text = line.rstrip(b"\r\n")
        if text.startswith(b"event: "):
            name = text[len(b"event: ") :].decode("utf-8", "replace")
        elif text.startswith(b"data: "):
            yield name, read_json(text[len(b"data: ") :], Any, "an event")
        elif text.startswith(b":"):
            yield "", None


@dataclass(slots=True)
class LiveState:
    """Rows by id, the relay's figures, and its clock. `clock_ahead_s`: how far the relay's clock is
    ahead of ours."""

    nodes: dict[str, Row] = field(default_factory=dict)
    requests: dict[str, Row] = field(default_factory=dict)
    deployments: dict[str, Row] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    pulse: Row = field(default_factory=dict)
    clock_ahead_s: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether all that a feed begins with has come: its last is the pulse."""
        return bool(self.pulse)

    def apply(self, name: str, told: Any) -> None:
        """Take in one event; one of an unknown name is of a newer relay and passed over."""
        if name in _KINDS:
            rows: dict[str, Row] = getattr(self, name)
            if told.get("full"):
                rows.clear()
            rows.update((row["id"], row) for row in told.get("set", ()))
            for gone in told.get("gone", ()):
                rows.pop(gone, None)
            if name == "requests":
                if told.get("full"):
                    self.tokens.clear()
                self.tokens.update(told.get("tokens", {}))
                for gone in told.get("gone", ()):
                    self.tokens.pop(gone, None)
        elif name == "pulse":
            self.pulse = told

    def tokens_per_s(self, request: Row, now: float) -> float | None:
        """How fast an answer comes since its first token; None before its second. `now` is ours."""
        if request["ttft_ms"] is None:
            return None
        since = request["started_at"] + request["ttft_ms"] / 1000.0
        took_s, count = now + self.clock_ahead_s - since, self.tokens.get(request["id"], 0)
        return (count - 1) / took_s if count > 1 and took_s > 0.0 else None

    def as_json(self, now: float) -> Row:
        """Everything, for scripts."""
        return {
            "pulse": self.pulse,
            "nodes": list(self.nodes.values()),
            "requests": [
                {
                    **row,
                    "tokens": self.tokens.get(key, 0),
                    "tokens_per_s": self.tokens_per_s(row, now),
                }
                for key, row in self.requests.items()
            ],
            "deployments": list(self.deployments.values()),
        }
