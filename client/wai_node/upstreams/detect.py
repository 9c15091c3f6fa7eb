"""Find out which inference server answers at an address, or on this box's usual ports.

The port only says where to look; what answers is told by its own answers. Nothing is sent but GETs.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from wai_protocol.errors import WaiError

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
        return await identify(self._url, self.key)


async def upstream_at(url: str, key: str = "") -> Upstream:
    """The upstream that a person named: identified if it can be, else taken as generic OpenAI.

    It need not be up. Raises `RequestError` when `url` is not one.
    """
    return await identify(url, key) or UnidentifiedUpstream(url, key)


async def find_upstreams(
    ports: tuple[int, ...] = USUAL_PORTS, *, except_for: frozenset[int] = frozenset()
) -> list[Upstream]:
    """Every inference server on 127.0.0.1's `ports`, less those known already."""
    wanted = [port for port in ports if port not in except_for]
    found = await asyncio.gather(*(identify(f"http://127.0.0.1:{port}") for port in wanted))
    return [upstream for upstream in found if upstream is not None]


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
