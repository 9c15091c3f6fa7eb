"""How each node did in the last hour: its slots, tokens per second, reconnections and its GPU.

A `Recorder` that counts the tokens that pass by node and hands the record on, and a look at every
node each `TICK_S`. It is in memory alone: 5 KB for each node. After a restart the tokens per second
begin with what `usage` has of the hour before; the rest is not known.
"""

from __future__ import annotations

import asyncio
import math
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from wai_api.nodes import NodeFigures, NodeHistory
from wai_relay.contracts.records import PastRequest, Recorder, RequestRecord

from .live import LiveRequests
from .past_steps import share_of

TICK_S: Final = 3.0  # how old a node's figures may be
STEP_TICKS: Final = 5  # a step of 15 s, as often as a node tells of its machine
STEP_S: Final = TICK_S * STEP_TICKS
STEPS: Final = 240  # an hour
NOW_TICKS: Final = 2  # "now" is the mean of so many: one tick alone flickers
_SERIES: Final = ("tokens_per_s", "slots_busy", "slots_total", "reconnects", "use")


class NodeNow(NamedTuple):
    """A node at this moment. `there`: it is connected. `use`: of its busiest GPU, or its processor,
    in percent; None: not told."""

    id: str
    name: str
    there: bool
    slots_busy: int
    slots_total: int | None
    reconnects: int
    rtt_s: float | None
    use: float | None


class _Hour:
    """The steps of one node; not a number is what is not known."""

    __slots__ = ("last_tokens", "reconnects", "steps", "tokens")

    def __init__(self, now: NodeNow, tokens: int) -> None:
        self.steps = {name: array("f", [math.nan]) * STEPS for name in _SERIES}
        self.reconnects = now.reconnects
        self.last_tokens = tokens
        self.tokens: deque[int] = deque([0] * STEP_TICKS, maxlen=STEP_TICKS)
        """What came in each of the latest ticks."""

    def tick(self, tokens: int) -> None:
        """`tokens` came from the node since the relay's start."""
        # A request that was retried elsewhere takes its tokens along, hence max.
        self.tokens.append(max(0, tokens - self.last_tokens))
        self.last_tokens = tokens

    def step(self, now: NodeNow) -> None:
        """Close a step."""
        known: dict[str, float | None] = dict.fromkeys(_SERIES)
        if now.there:
            known |= {
                "tokens_per_s": sum(self.tokens) / STEP_S,
                "slots_busy": now.slots_busy,
                "slots_total": now.slots_total,
                "reconnects": max(0, now.reconnects - self.reconnects),
                "use": now.use,
            }
        self.reconnects = now.reconnects
        for name, values in self.steps.items():
            del values[0]
            value = known[name]
            values.append(math.nan if value is None else value)

    def rate(self) -> float:
        """Tokens per second now."""
        return sum(list(self.tokens)[-NOW_TICKS:]) / (NOW_TICKS * TICK_S)


class NodeHours:
    """See the module. `look`: the nodes at this moment. `start` it; `close` it; of one loop."""

    def __init__(
        self,
        onward: Recorder,
        look: Callable[[], Iterable[NodeNow]],
        *,
        wall_clock: Callable[[], float] = time.time,
        call_later: Callable[[float, Callable[[], None]], Any] | None = None,
    ) -> None:
        self.rows: dict[str, NodeFigures] = {}
        """By node; a row is replaced when it changes: who looks compares identities."""
        self._onward = onward
        self._look = look
        self._wall_clock = wall_clock
        self._call_later = call_later
        self._live = LiveRequests()
        self._timer: Any = None
        self._finished: Counter[str] = Counter()
        self._hours: dict[str, _Hour] = {}
        self._ticks = 0
        self._until = wall_clock()

    def finish(self, record: RequestRecord) -> None:
        """See `Recorder`."""
        if record.node and record.tokens.completion:
            self._finished[record.node] += record.tokens.completion
        self._onward.finish(record)

    def restore(self, past: Iterable[PastRequest]) -> None:
        """Begin with the tokens of these requests of the last hour, before `start`."""
        now = self._wall_clock()
        nodes = {node.name: self._hour_of(node, 0) for node in self._look()}
        for one in past:
            hour, share = nodes.get(one.node), share_of(one, now, STEP_S, STEPS)
            if hour is None or share is None:
                continue
            rates = hour.steps["tokens_per_s"]
            if math.isnan(rates[-1]):
                rates[:] = array("f", bytes(rates.itemsize * STEPS))
            for step in range(share.first, share.last + 1):
                rates[step] += share.tokens_per_s

    def start(self, live: LiveRequests) -> None:
        """Begin to look at `live` and the nodes."""
        self._live = live
        call_later = self._call_later or asyncio.get_running_loop().call_later
        self._timer = call_later(TICK_S, self._on_timer)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def history(self, node_id: str) -> NodeHistory:
        """The last hour of a node; nothing but null where it has not been looked at yet."""
        hour = self._hours.get(node_id)
        unknown: list[float | None] = [None] * STEPS
        series = {
            name: unknown if hour is None else [_told(value) for value in hour.steps[name]]
            for name in _SERIES
        }
        return NodeHistory(step_s=STEP_S, until=self._until, **series)

    def tick(self) -> None:
        """Look at every node once."""
        tokens = Counter(self._finished)
        for view in self._live.views(0.0):
            tokens[view.node] += view.completion_tokens
        self._ticks += 1
        closes = self._ticks % STEP_TICKS == 0
        nodes = list(self._look())
        for node in nodes:
            hour = self._hour_of(node, tokens[node.name])
            hour.tick(tokens[node.name])
            if closes:
                hour.step(node)
            self._show(node, hour)
        if closes:
            self._until = round(self._wall_clock(), 1)
        self._forget_others({node.id for node in nodes}, {node.name for node in nodes})

    def _hour_of(self, node: NodeNow, tokens: int) -> _Hour:
        hour = self._hours.get(node.id)
        if hour is None:
            hour = self._hours[node.id] = _Hour(node, tokens)
        return hour

    def _show(self, node: NodeNow, hour: _Hour) -> None:
        rtt_ms = None if node.rtt_s is None or not node.there else round(node.rtt_s * 1000, 1)
        row = NodeFigures(id=node.id, tokens_per_s=round(hour.rate(), 1), rtt_ms=rtt_ms)
        if self.rows.get(node.id) != row:
            self.rows[node.id] = row

    def _forget_others(self, ids: set[str], names: set[str]) -> None:
        for gone in self._hours.keys() - ids:
            del self._hours[gone]
            self.rows.pop(gone, None)
        for gone in self._finished.keys() - names:  # providers, too
            del self._finished[gone]

    def _on_timer(self) -> None:
        self.tick()
        self.start(self._live)


def _told(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 1)
