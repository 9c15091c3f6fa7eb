"""While somebody looks at the live feed, ask the other relays each second what they do."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from wai_api.feed import PulseHistory, PulseView
from wai_api.nodes import NodeFigures
from wai_api.relays import RelayLive
from wai_api.requests import LiveView
from wai_protocol.errors import WaiError
from wai_relay.fleet.relays import RelayRecord
from wai_relay.observe.pulse import summed, summed_history

ASK_EVERY_S: Final = 1.0
FORGET_S: Final = 5.0
"""A relay that does not answer for so long is not counted any more."""

FIRST_S: Final = 1.0
"""How long whoever begins to look waits for the others' last hour."""


class AskedRelays(Protocol):
    """What is asked of `Peers`."""

    @property
    def others(self) -> tuple[RelayRecord, ...]:
        """The relays to ask."""

    async def ask(
        self, relay: RelayRecord, actor: str, method: str, path: str, kind: type[RelayLive], /
    ) -> RelayLive:
        """Ask one of them. Raises `WaiError`."""


class Elsewhere:
    """What the other relays told last. `actor`: the admin for whom they are asked."""

    def __init__(
        self,
        relays: AskedRelays,
        actor: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._relays = relays
        self._actor = actor
        self._clock = clock
        self._told: dict[str, tuple[float, RelayLive]] = {}
        self._histories: dict[str, PulseHistory] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._asked_at: dict[str, float] = {}

    def look(self) -> None:
        """Ask each relay whose last answer is a second old."""
        now = self._clock()
        others = {one.id: one for one in self._relays.others}
        for gone in self._told.keys() - others.keys():
            del self._told[gone]
        for relay_id, relay in others.items():
            due = now - self._asked_at.get(relay_id, float("-inf")) >= ASK_EVERY_S
            if due and relay_id not in self._asking:
                self._asked_at[relay_id] = now
                self._ask(relay, "/live")

    async def begin(self) -> None:
        """Somebody begins to look: ask for the last hour too, and wait for it for a moment."""
        others = self._relays.others
        for relay in others:
            if relay.id not in self._asking:
                self._ask(relay, "/live?history=true")
        if self._asking:
            await asyncio.wait(list(self._asking.values()), timeout=FIRST_S)

    def _ask(self, relay: RelayRecord, path: str) -> None:
        task = asyncio.get_running_loop().create_task(self._take(relay, path))
        self._asking[relay.id] = task
        task.add_done_callback(lambda _: self._asking.pop(relay.id, None))

    async def _take(self, relay: RelayRecord, path: str) -> None:
        try:
            told = await self._relays.ask(relay, self._actor(), "GET", path, RelayLive)
        except WaiError:  # `Peers` asks for people too, and says then what is wrong
            return
        self._told[relay.id] = (self._clock(), told)
        if told.history is not None:
            self._histories[relay.id] = told.history

    def close(self) -> None:
        """Ask no more."""
        for task in list(self._asking.values()):
            task.cancel()

    def _fresh(self) -> list[RelayLive]:
        now = self._clock()
        return [told for at, told in self._told.values() if now - at < FORGET_S]

    # -- what they told

    def requests(self) -> Iterable[LiveView]:
        """What runs at the others."""
        for told in self._fresh():
            yield from told.requests

    def pulse(self, own: PulseView, bins: Mapping[int, int]) -> PulseView:
        """The figures of all relays, with this one's own."""
        fresh = self._fresh()
        if not fresh:
            return own
        counted = Counter(dict(bins))
        for told in fresh:
            counted.update(told.ttft_bins)
        return summed(own, (told.pulse for told in fresh), counted)

    def history(self, own: PulseHistory) -> PulseHistory:
        """The last hour of all relays, with this one's own."""
        known = [self._histories[one] for one in self._told if one in self._histories]
        return summed_history(own, known) if known else own

    def figures(self, own: Mapping[str, NodeFigures]) -> dict[str, NodeFigures]:
        """What the nodes do for all relays."""
        summed_up = dict(own)
        for told in self._fresh():
            for one in told.figures:
                if (mine := summed_up.get(one.id)) is not None and one.tokens_per_s:
                    tokens_per_s = round(mine.tokens_per_s + one.tokens_per_s, 1)
                    summed_up[one.id] = NodeFigures(
                        id=one.id, tokens_per_s=tokens_per_s, rtt_ms=mine.rtt_ms
                    )
        return summed_up
