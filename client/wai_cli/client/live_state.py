"""The relay's current state, built from the events of its live feed. Pure.

The feed is `GET /admin/v1/events` (docs/http-api.md). No socket is read and nothing is drawn here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from wai_protocol.foreign_json import read_json

Row = dict[str, Any]
_KINDS: Final = ("nodes", "requests", "deployments", "hardware")


def parse(lines: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    """Yield the events in the lines of an SSE stream: name and decoded data.

    A comment yields ("", None), as a sign of life. Raises `WaiError` on data that is not JSON.
    """
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
    """Rows by id, and the relay's figures.

    `clock_ahead_s`: how far the relay's clock is ahead of ours.
    """

    nodes: dict[str, Row] = field(default_factory=dict)
    requests: dict[str, Row] = field(default_factory=dict)
    deployments: dict[str, Row] = field(default_factory=dict)
    hardware: dict[str, Row] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    pulse: Row = field(default_factory=dict)
    clock_ahead_s: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether the first events of the feed have all arrived; the pulse is the last of them."""
        return bool(self.pulse)

    def apply(self, name: str, told: Any) -> None:
        """Apply one event. Unknown names, from a newer relay, are ignored."""
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
        """Return an answer's rate since its first token; None before the second token.

        `now` is our clock's time.
        """
        if request["ttft_ms"] is None:
            return None
        since = request["started_at"] + request["ttft_ms"] / 1000.0
        took_s, count = now + self.clock_ahead_s - since, self.tokens.get(request["id"], 0)
        return (count - 1) / took_s if count > 1 and took_s > 0.0 else None

    def as_json(self, now: float) -> Row:
        """Return the whole state as one JSON object, for scripts."""
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
            "hardware": list(self.hardware.values()),
        }
