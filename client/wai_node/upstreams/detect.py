"""Find out which inference server answers at an address, or on this box's usual ports.

The port only says where to look; what answers is told by its own answers. Nothing is sent but GETs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from wai_protocol.errors import WaiError
from wai_protocol.foreign_json import ForeignJsonError, read_json

from .consent import Consent, Judged, Verdict
from .llama_server import LlamaServerUpstream
from .lm_studio import LmStudioModels, LmStudioUpstream
from .ollama import OllamaUpstream
from .openai import OpenAIUpstream
from .upstream import PROBE_TIMEOUT_S, ModelList, Upstream
from .vllm import VllmUpstream

USUAL_PORTS: Final = (8080, 11434, 1234, 8000)  # llama-server, Ollama, LM Studio, vLLM

IDENTIFY_S: Final = 2 * PROBE_TIMEOUT_S
"""For all the questions to one port. A server that trickles could hold up each of them."""


class UnidentifiedUpstream(OpenAIUpstream):
    """What a person named and nothing was known of when we looked: generic OpenAI until it is."""

    def __init__(self, url: str, key: str = "") -> None:
        super().__init__(url, key)
        self._url = url

    async def identified(self) -> Upstream | None:
        """What answers there now; None while nothing that we know does."""
        return await identify(self._url, self.key)


async def upstream_at(url: str, key: str = "") -> Upstream:
    """The upstream that a person named: identified if it can be, else taken as generic OpenAI.

    It need not be up. Raises `RequestError` when `url` is not one.
    """
    return await identify(url, key) or UnidentifiedUpstream(url, key)


class Found(NamedTuple):
    """A server on a usual port, and whether it may have prompts. Whoever gets it closes it."""

    upstream: Upstream
    judged: Judged


async def look_around(
    consent: Consent,
    ports: tuple[int, ...] = USUAL_PORTS,
    *,
    except_for: frozenset[int] = frozenset(),
) -> list[Found]:
    """Every inference server on 127.0.0.1's `ports`, less those known already. Whose it is, is
    looked at again before each connection to it."""
    wanted = [port for port in ports if port not in except_for]
    there = await asyncio.gather(*map(_identify_soon, wanted))
    found = []
    for upstream in there:
        if upstream is not None:
            upstream.guard(partial(consent.check, upstream.origin.port))
            found.append(Found(upstream, consent.judge(upstream.origin.port)))
    return found


async def find_upstreams(
    consent: Consent,
    ports: tuple[int, ...] = USUAL_PORTS,
    *,
    except_for: frozenset[int] = frozenset(),
    on_waiting: Callable[[list[str]], None] = lambda waiting: None,
) -> list[Upstream]:
    """Those that `look_around` finds and that may have prompts; of the others nothing is used.

    `on_waiting` hears each time which of them wait for an answer.
    """
    usable, waiting = [], []
    for upstream, judged in await look_around(consent, ports, except_for=except_for):
        if judged.verdict is Verdict.ALLOWED:
            usable.append(upstream)
            continue
        if judged.verdict is Verdict.WAITING:
            consent.tell(upstream.name, upstream.origin.port, judged)
            waiting.append(f"{upstream.name} of {judged.owner}")
        await upstream.aclose()
    on_waiting(waiting)
    return usable


async def _identify_soon(port: int) -> Upstream | None:
    """What answers at `port`, None if that is not told in time: the other ports wait for it."""
    try:
        async with asyncio.timeout(IDENTIFY_S):
            return await identify(f"http://127.0.0.1:{port}")
    except TimeoutError:
        return None


async def identify(url: str, key: str = "") -> Upstream | None:
    """What answers at `url`, None when nothing does or it is no inference server."""
    asker = OpenAIUpstream(url, key)
    try:
        kind = await _kind(asker)
    except WaiError:
        return None
    finally:
        await asker.aclose()
    return kind(url, key) if kind is not None else None


async def _kind(asker: OpenAIUpstream) -> type[Upstream] | None:
    status, headers, _ = await asker.get("/health")  # without a key even where one is demanded
    if dict(headers).get(b"server", b"").lower() == b"llama.cpp":
        return LlamaServerUpstream
    if await _answers(asker, "/api/tags", dict[str, Any]) and await _answers(
        asker, "/api/version", dict[str, Any]
    ):
        return OllamaUpstream
    if await _answers(asker, "/api/v1/models", LmStudioModels):
        return LmStudioUpstream
    status, _, body = await asker.get("/v1/models")
    if status != 200:
        return None
    try:
        listed = read_json(body, ModelList, "the answer to /v1/models")
    except ForeignJsonError:
        return None
    if any(entry.owned_by == "vllm" for entry in listed.data):
        return VllmUpstream
    return OpenAIUpstream


async def _answers(asker: OpenAIUpstream, path: str, shape: type[Any]) -> bool:
    """Whether `GET path` gives JSON of that shape."""
    status, _, body = await asker.get(path)
    if status != 200:
        return False
    try:
        read_json(body, shape, f"the answer to {path}")
    except ForeignJsonError:
        return False
    return True
