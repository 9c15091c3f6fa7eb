"""Find out which inference server answers at an address, or on this box's usual ports.

The port only says where to look; what answers is told by its own answers. Nothing is sent but GETs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from wai_protocol.errors import WaiError

from .consent import Consent, Judged, Verdict
from .llama_server import LlamaServerUpstream
from .lm_studio import LmStudioModels, LmStudioUpstream
from .ollama import OllamaUpstream
from .openai import OpenAIUpstream
from .upstream import ModelList, Upstream
from .vllm import VllmUpstream

USUAL_PORTS: Final = (8080, 11434, 1234, 8000)  # llama-server, Ollama, LM Studio, vLLM


class UnidentifiedUpstream(OpenAIUpstream):
    """What a person named and nothing was known of when we looked: generic OpenAI until it is."""

    def __init__(self, url: str, key: str = "") -> None:
        super().__init__(url, key)
        self._url = url

    async def identified(self) -> Upstream | None:
        """What answers there now; None while nothing that we know does."""
        found = await identify(self._url, self.key)
        if found is not None:
            found.slots = self.slots
        return found


async def upstream_at(url: str, key: str = "", slots: int | None = None) -> Upstream:
    """The upstream that a person named: identified if it can be, else taken as generic OpenAI. It
    works on `slots` requests at once where it does not tell.

    It need not be up. Raises `RequestError` when `url` is not one.
    """
    upstream = await identify(url, key) or UnidentifiedUpstream(url, key)
    upstream.slots = slots
    return upstream


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
    there = await asyncio.gather(*(identify(f"http://127.0.0.1:{port}") for port in wanted))
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
        listed = msgspec.json.decode(body, type=ModelList)
    except msgspec.DecodeError:
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
        msgspec.json.decode(body, type=shape)
    except msgspec.DecodeError:
        return False
    return True
