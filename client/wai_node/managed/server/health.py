"""Ask a managed server whether it has loaded, and with how much context."""

from __future__ import annotations

from typing import Final

import msgspec

from wai_protocol.errors import Fault, TransportError, WaiError
from wai_protocol.foreign_json import ForeignJsonError, read_json
from wai_transport.http_client import HttpClient
from wai_transport.origin import Origin

ASK_TIMEOUT_S: Final = 5.0  # /health and /props are answered while the model computes
ANSWER_LIMIT_BYTES: Final = 1 << 20  # /props holds the chat template


class Served(msgspec.Struct, frozen=True):
    """The figures of a ready server; `context_tokens` is per slot."""

    context_tokens: int
    slots: int


class _Generation(msgspec.Struct):
    n_ctx: int


class _Props(msgspec.Struct):
    default_generation_settings: _Generation
    total_slots: int


class Health:
    """A client of the server at `url`. Call `aclose` when the server has ended."""

    def __init__(self, url: str, key: str) -> None:
        origin, _ = Origin.parse(url)
        self._client = HttpClient(origin)
        self._headers = [(b"authorization", b"Bearer " + key.encode())]

    async def ready(self) -> bool:
        """Return whether it has loaded; False on 503. Raises `WaiError` if it does not answer."""
        status, _, _ = await self._get("/health", with_key=False)
        return status == 200

    async def served(self) -> Served:
        """Return its context and slots. Raises `WaiError` if the answer lacks them."""
        status, _, body = await self._get("/props", with_key=True)
        try:
            props = read_json(body, _Props, "the answer to /props")
        except ForeignJsonError as error:
            raise TransportError(
                f"the server answered {status} to /props, without its context",
                Fault.UPSTREAM_BROKE,
            ) from error
        return Served(props.default_generation_settings.n_ctx, props.total_slots)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def _get(self, path: str, *, with_key: bool) -> tuple[int, object, bytes]:
        headers = self._headers if with_key else []
        return await self._client.fetch(
            "GET", path, headers, limit_bytes=ANSWER_LIMIT_BYTES, timeout_s=ASK_TIMEOUT_S
        )


async def answers(health: Health) -> bool:
    """Return whether a running server answers and is ready; errors count as no."""
    try:
        return await health.ready()
    except WaiError:
        return False
