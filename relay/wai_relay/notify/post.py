"""POST to a receiver, of whose answer only the status and a few words are read."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Final

from wai_protocol.errors import RequestError, TransportError, WaiError
from wai_protocol.surface import Headers
from wai_transport.http_client import HttpClient
from wai_transport.http_proxy import ProxySettings
from wai_transport.plain_text import one_line
from wai_transport.version import VERSION

from .config import place_of
from .receiver import DELIVER_S

_WORDS_BYTES: Final = 300  # of an answer that refuses, for the log


class Poster:
    """Posts to one URL. It follows no redirect: a message goes where the operator says."""

    def __init__(self, url: str, ca_file: Path | None, proxies: ProxySettings) -> None:
        """Raises `WaiError` for a CA file, or a proxy, that can't be used."""
        self.origin, self._target = place_of(url)
        tls = None if ca_file is None else trusting(ca_file)
        self._client = HttpClient(self.origin, tls=tls, proxies=proxies)

    async def post(self, headers: Headers, body: bytes, target: str | None = None) -> None:
        """Send `body`. Raises `WaiError` unless the answer is a 2xx."""
        answer = _Answer()
        sent = [(b"user-agent", b"wai/" + VERSION.encode()), *headers]
        request = self._client.request(
            "POST", target or self._target, sent, answer, body_length=len(body)
        )
        request.write(body)
        # whatever it still sends after these words is not read
        status, words = await self._client.answered(request, answer.done, DELIVER_S)
        if 300 <= status < 400:
            raise TransportError(
                f"{self.origin} redirects (status {status}); give the address that it leads to"
            )
        if not 200 <= status < 300:
            said = f": {words}" if words else ""
            raise TransportError(f"{self.origin} answers {status}{said}")

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()


class _Answer:
    """A sink that is done with a good status at once, and with a bad one after some words."""

    def __init__(self) -> None:
        self.done: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._words = b""

    def on_headers(self, status: int, headers: Headers) -> None:
        self._status = status
        if status < 400:
            self._finish()

    def on_data(self, data: bytes) -> None:
        self._words = (self._words + data)[:_WORDS_BYTES]
        if len(self._words) == _WORDS_BYTES:
            self._finish()

    def on_end(self) -> None:
        self._finish()

    def on_error(self, error: WaiError) -> None:
        if self._status:
            self._finish()
        elif not self.done.done():
            self.done.set_exception(error)

    def _finish(self) -> None:
        if not self.done.done():
            words = one_line(self._words.decode(errors="replace").strip())
            self.done.set_result((self._status, words))


def trusting(ca_file: Path | None) -> ssl.SSLContext:
    """A context that believes `ca_file`, or the system. Raises `RequestError`."""
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise RequestError(f"notify: {ca_file} is no PEM file") from error
