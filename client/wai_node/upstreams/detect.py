"""Find out which inference server answers at an address, or on this box's usual ports.

The port only says where to look; what answers is told by its own answers. Nothing is sent but GETs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from wai_protocol.surface import Route

from .consent import Consent, Judged, Verdict
from .kinds import KINDS, UpstreamKinds
from .openai import OpenAIUpstream
from .upstream import PROBE_TIMEOUT_S, Asker, Upstream

IDENTIFY_S: Final = 2 * PROBE_TIMEOUT_S
"""For all the questions to one port. A server that trickles could hold up each of them."""


class UnidentifiedUpstream(OpenAIUpstream):
    """What a person named and nothing was known of when we looked: generic OpenAI until it is."""

    def __init__(self, url: str, key: str = "", kinds: UpstreamKinds = KINDS) -> None:
        super().__init__(url, key)
        self._url = url
        self._kinds = kinds

    async def identified(self) -> Upstream | None:
        """What answers there now; None while nothing that we know does."""
        found = await identify(self._url, self.key, self._kinds)
        if found is not None:
            found.slots, found.extra = self.slots, self.extra
        return found


async def upstream_at(
    url: str,
    key: str = "",
    kinds: UpstreamKinds = KINDS,
    *,
    slots: int | None = None,
    extra: tuple[Route, ...] = (),
) -> Upstream:
    """The upstream that a person named: identified if it can be, else taken as generic OpenAI. It
    works on `slots` requests at once where it does not tell, and has `extra` routes.

    It need not be up. Raises `RequestError` when `url` is not one.
    """
    upstream = await identify(url, key, kinds) or UnidentifiedUpstream(url, key, kinds)
    upstream.slots, upstream.extra = slots, extra
    return upstream


class Found(NamedTuple):
    """A server on a usual port, and whether it may have prompts. Whoever gets it closes it."""

    upstream: Upstream
    judged: Judged


async def look_around(
    consent: Consent,
    ports: tuple[int, ...] | None = None,
    *,
    kinds: UpstreamKinds = KINDS,
    except_for: frozenset[int] = frozenset(),
) -> list[Found]:
    """Every inference server on 127.0.0.1's `ports`, less those known already; without `ports`, on
    the usual ones of `kinds`. Whose it is, is looked at again before each connection to it."""
    ports = kinds.usual_ports if ports is None else ports
    wanted = [port for port in ports if port not in except_for]
    there = await asyncio.gather(*(_identify_soon(port, kinds) for port in wanted))
    found = []
    for upstream in there:
        if upstream is not None:
            upstream.guard(partial(consent.check, upstream.origin.port))
            found.append(Found(upstream, consent.judge(upstream.origin.port)))
    return found


async def find_upstreams(
    consent: Consent,
    ports: tuple[int, ...] | None = None,
    *,
    kinds: UpstreamKinds = KINDS,
    except_for: frozenset[int] = frozenset(),
    on_waiting: Callable[[list[str]], None] = lambda waiting: None,
) -> list[Upstream]:
    """Those that `look_around` finds and that may have prompts; of the others nothing is used.

    `on_waiting` hears each time which of them wait for an answer.
    """
    usable, waiting = [], []
    for upstream, judged in await look_around(consent, ports, kinds=kinds, except_for=except_for):
        if judged.verdict is Verdict.ALLOWED:
            usable.append(upstream)
            continue
        if judged.verdict is Verdict.WAITING:
            consent.tell(upstream.name, upstream.origin.port, judged)
            waiting.append(f"{upstream.name} of {judged.owner}")
        await upstream.aclose()
    on_waiting(waiting)
    return usable


async def _identify_soon(port: int, kinds: UpstreamKinds) -> Upstream | None:
    """What answers at `port`, None if that is not told in time: the other ports wait for it."""
    try:
        async with asyncio.timeout(IDENTIFY_S):
            return await identify(f"http://127.0.0.1:{port}", kinds=kinds)
    except TimeoutError:
        return None


async def identify(url: str, key: str = "", kinds: UpstreamKinds = KINDS) -> Upstream | None:
    """What answers at `url`, None when nothing does or it is no inference server.

    Raises `RequestError` when `url` is not one.
    """
    asker = Asker(url, key)
    try:
        kind = await kinds.detect(asker)
    finally:
        await asker.aclose()
    return kind(url, key) if kind is not None else None
