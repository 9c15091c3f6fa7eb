"""What `GET /admin/v1/events` sends: one SSE feed of everything live.

    event: nodes | requests | deployments | hardware | figures
                               {"full": bool, "set": [rows], "gone": [ids], "tokens": {id: count}}
    event: history             the last hour of the relay's pulse, once
    event: pulse               its figures now, every two seconds
    event: changed             {"count": n}: an admin changed something: look again

The first of each set of rows is whole ("full"), the next ones say what differs. Differences are
worked out once for all who listen, a few times a second, and not at all while nobody does. A
listener that does not keep up gets the whole again instead of a growing queue.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Set
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from wai_api.feed import Changed, Difference, PulseView, RequestRow
from wai_api.hardware import HardwareView
from wai_api.models import DeploymentView
from wai_api.nodes import NodeFigures, NodeView
from wai_api.requests import LiveView
from wai_relay.access.audit import AuditLog
from wai_relay.observe.hardware import HardwareBook
from wai_relay.observe.live import LiveRequests
from wai_relay.observe.pulse import CallLater, Pulse

from .deployed import Deployed
from .elsewhere import Elsewhere
from .hardware_watch import HardwareWatch
from .live_nodes import LiveFleet, LiveNode, node_view

TICK_S: Final = 0.5  # how far a token count may be behind; people read no faster
MAX_LISTENERS: Final = 64  # a few browsers of a few admins, and their forgotten tabs
MAX_WAITING: Final = 8  # four seconds of differences: a phone in a lift, then it gets the whole
KEEP_ALIVE_S: Final = 15.0  # proxies cut what is silent for 30 to 60 s
_ENCODER: Final = msgspec.json.Encoder()


class FeedReader:
    """One who reads the feed: what waits for it, and whether it needs the whole."""

    def __init__(self) -> None:
        self.waiting: deque[bytes] = deque()
        self.behind = True
        self.wake = asyncio.Event()

    def offer(self, message: bytes) -> None:
        """Queue a difference, or give up and send the whole later."""
        if self.behind:
            return
        if len(self.waiting) >= MAX_WAITING:
            self.waiting.clear()
            self.behind = True
        else:
            self.waiting.append(message)
        self.wake.set()


class Feed:
    """The live state and who listens to it. Belongs to one loop; `close` ends every listener."""

    def __init__(
        self,
        fleet: LiveFleet,
        live: LiveRequests,
        pulse: Pulse,
        audit: AuditLog,
        key_name: Callable[[str], str],
        *,
        hardware: HardwareBook | None = None,
        figures: Mapping[str, NodeFigures] | None = None,
        elsewhere: Elsewhere | None = None,
        call_later: CallLater | None = None,
    ) -> None:
        self._fleet = fleet
        self.hardware = hardware or HardwareBook()
        self._watch = HardwareWatch()
        self._machines: dict[str, HardwareView] = {}
        self._figures_now = {} if figures is None else figures
        self._figures: dict[str, NodeFigures] = {}
        self.elsewhere = elsewhere
        """What the other relays do; None where there can be none."""
        self._live = live
        self.pulse = pulse
        self.relay_name: Callable[[], str] = lambda: ""
        """What this relay is called, "" where it is alone."""
        self._audit = audit
        self._key_name = key_name
        self._listeners: set[FeedReader] = set()
        self._call_later = call_later
        self._timer: Any = None
        self._closed = False
        self._nodes: dict[str, NodeView] = {}
        self._node_marks: dict[str, tuple[Any, ...]] = {}
        self._requests: dict[str, RequestRow] = {}
        self._tokens: dict[str, int] = {}
        self.deployed = Deployed()
        self._deployed: dict[str, DeploymentView] = {}
        self._pulse_at = 0.0
        self._changes = 0

    async def listen(self, allowed: Callable[[], bool]) -> AsyncIterator[bytes]:
        """The feed as SSE bytes, until `close`, or `allowed` says no. Raises `WaiError`."""
        listener = FeedReader()
        self._listeners.add(listener)
        if self._timer is None:
            self.deployed.ask_again()
            if self.elsewhere is not None:
                await self.elsewhere.begin()
            self._refresh()
            self._set_timer()
        try:
            while not self._closed and allowed():
                listener.wake.clear()
                if listener.behind:
                    listener.behind = False
                    yield self._whole()
                elif listener.waiting:
                    messages = b"".join(listener.waiting)
                    listener.waiting.clear()
                    yield messages
                else:
                    try:
                        async with asyncio.timeout(KEEP_ALIVE_S):
                            await listener.wake.wait()
                    except TimeoutError:
                        yield b": still here\n\n"
        finally:
            self._listeners.discard(listener)

    @property
    def full(self) -> bool:
        """Whether there are as many listeners as there may be."""
        return len(self._listeners) >= MAX_LISTENERS

    def close(self) -> None:
        """End the feed for all."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.deployed.close()
        self._watch.close()
        if self.elsewhere is not None:
            self.elsewhere.close()
        for listener in self._listeners:
            listener.wake.set()

    # -- what changed
    def _set_timer(self) -> None:
        call_later = self._call_later or asyncio.get_running_loop().call_later
        self._timer = call_later(TICK_S, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not self._listeners or self._closed:
            return
        if message := self._refresh():
            for listener in self._listeners:
                listener.offer(message)
        self._set_timer()

    def _refresh(self) -> bytes:
        """Look at everything; the differences to the last look."""
        if self.elsewhere is not None:
            self.elsewhere.look()
        return b"".join(
            (
                self._look_at_nodes(),
                self._look_at_requests(),
                self._look_at_deployments(),
                self._look_at_hardware(),
                self._look_at_figures(),
                self._look_at_pulse(),
            )
        )

    def _look_at_nodes(self) -> bytes:
        changed: list[NodeView] = []
        seen: set[str] = set()
        for node in self._fleet.nodes():
            seen.add(node.record.id)
            # A status is replaced, never changed: most looks compare four identities.
            mark = _mark_of(node)
            if self._node_marks.get(node.record.id) != mark:
                self._node_marks[node.record.id] = mark
                view = self._nodes[node.record.id] = node_view(node)
                changed.append(view)
        gone = _drop_others(self._nodes, seen)
        _drop_others(self._node_marks, seen)
        return _differ("nodes", changed, gone, {})

    def _look_at_requests(self) -> bytes:
        changed: list[RequestRow] = []
        tokens: dict[str, int] = {}
        seen: set[str] = set()
        for view in self._views():
            seen.add(view.id)
            if self._tokens.get(view.id, 0) != view.completion_tokens:
                tokens[view.id] = self._tokens[view.id] = view.completion_tokens
            known = self._requests.get(view.id)
            if known is None or not _same(known, view):
                row = self._requests[view.id] = _row_of(view, self._key_name(view.key_id))
                changed.append(row)
        gone = _drop_others(self._requests, seen)
        _drop_others(self._tokens, seen)
        return _differ("requests", changed, gone, tokens)

    def _views(self) -> list[LiveView]:
        views = self._live.views(time.monotonic())
        if self.elsewhere is not None and self.relay_name():
            name = self.relay_name()
            views = [replace(view, relay=name) for view in views]
            views += self.elsewhere.requests()
        return views

    def _look_at_figures(self) -> bytes:
        now = self._figures_now
        if self.elsewhere is not None:
            told = self.elsewhere.figures(now)
            kept = {key: self._figures.get(key) for key in told}
            now = {key: one if kept[key] != one else kept[key] or one for key, one in told.items()}
        return _differences("figures", now, self._figures)

    def _look_at_deployments(self) -> bytes:
        self.deployed.look(self._fleet.nodes())
        return _differences("deployments", self.deployed.rows, self._deployed)

    def _look_at_hardware(self) -> bytes:
        nodes = list(self._fleet.nodes())
        self._watch.look(nodes)
        self.hardware.keep({node.record.id for node in nodes if node.state != "offline"})
        return _differences("hardware", self.hardware.rows, self._machines)

    def _look_at_pulse(self) -> bytes:
        message = b""
        if self.pulse.now.at != self._pulse_at:
            self._pulse_at = self.pulse.now.at
            message += _event("pulse", self._pulse_now())
        if self._audit.changes != self._changes:
            self._changes = self._audit.changes
            message += _event("changed", Changed(self._changes))
        return message

    def _pulse_now(self) -> PulseView:
        if self.elsewhere is None:
            return self.pulse.now
        return self.elsewhere.pulse(self.pulse.now, self.pulse.ttft_bins())

    def _whole(self) -> bytes:
        history = self.pulse.history()
        if self.elsewhere is not None:
            history = self.elsewhere.history(history)
        nodes = Difference(full=True, set=tuple(self._nodes.values()))
        requests = Difference(
            full=True, set=tuple(self._requests.values()), tokens=dict(self._tokens)
        )
        deployments = Difference(full=True, set=tuple(self._deployed.values()))
        machines = Difference(full=True, set=tuple(self._machines.values()))
        figures = Difference(full=True, set=tuple(self._figures.values()))
        return b"".join(
            (
                _event("nodes", nodes),
                _event("requests", requests),
                _event("deployments", deployments),
                _event("hardware", machines),
                _event("figures", figures),
                _event("history", history),
                _event("pulse", self._pulse_now()),
            )
        )


def _mark_of(node: LiveNode) -> tuple[Any, ...]:
    return (
        *(node.status, node.state, node.record, node.reconnects, node.agent),
        node.connected_at,
        node.copied,
    )


def _same(row: RequestRow, view: LiveView) -> bool:
    """Whether `row` still says what `view` does. Names that are compared change in this order."""
    return (
        row.state == view.state
        and row.node == view.node
        and row.attempts == view.attempts
        and row.model == view.model
        and row.prompt_tokens == view.prompt_tokens
    )


def _row_of(view: LiveView, key_name: str) -> RequestRow:
    return RequestRow(
        view.id,
        view.key_id,
        key_name,
        view.model,
        view.node,
        view.state,
        view.reason,
        view.attempts,
        view.started_at,
        round(view.queue_ms, 1),
        view.ttft_ms,
        view.prompt_tokens,
        view.relay,
    )


def _drop_others(rows: dict[str, Any], seen: Set[str]) -> tuple[str, ...]:
    if len(rows) == len(seen):
        return ()
    gone = tuple(key for key in rows if key not in seen)
    for key in gone:
        del rows[key]
    return gone


def _differences(name: str, rows: Mapping[str, Any], known: dict[str, Any]) -> bytes:
    """What differs in `rows`, in which a row is replaced when it changes; `known` are from now on
    the same."""
    changed = [row for key, row in rows.items() if known.get(key) is not row]
    known.update((row.id, row) for row in changed)
    return _differ(name, changed, _drop_others(known, rows.keys()), {})


def _differ(
    name: str, changed: Iterable[Any], gone: tuple[str, ...], tokens: dict[str, int]
) -> bytes:
    difference = Difference(set=tuple(changed), gone=gone, tokens=tokens)
    if not (difference.set or gone or tokens):
        return b""
    return _event(name, difference)


def _event(name: str, value: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _ENCODER.encode(value))
