"""A topic of an ntfy server: a notification on a phone. Published as JSON, which takes any text."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from wai_protocol.surface import Headers
from wai_transport.http_proxy import ProxySettings

from .config import NtfyConfig
from .message import Message
from .post import Poster

MAX_BYTES: Final = 3500  # of the text: what is over 4096 would come as a file


class Ntfy:
    """See `Receiver`."""

    def __init__(self, config: NtfyConfig, proxies: ProxySettings) -> None:
        """Raises `WaiError` for a token or a file that can't be read."""
        self._topic = config.topic
        self._token = config.read_token()
        self._poster = Poster(config.url, config.ca_file, proxies)
        self.name = f"ntfy {self._poster.origin.place}"

    async def deliver(self, message: Message) -> None:
        """See `Receiver`."""
        headers: Headers = [(b"content-type", b"application/json")]
        if self._token:
            headers.append((b"authorization", b"Bearer " + self._token.encode()))
        await self._poster.post(headers, body_of(self._topic, message), "/")

    async def aclose(self) -> None:
        """See `Receiver`."""
        await self._poster.aclose()


def body_of(topic: str, message: Message) -> bytes:
    """What is posted."""
    text = message.text.encode()
    if len(text) > MAX_BYTES:
        text = text[:MAX_BYTES] + "…".encode()
    published: dict[str, Any] = {
        "topic": topic,
        "title": message.title,
        "message": text.decode(errors="ignore"),
        "tags": ["warning" if message.begun else "white_check_mark"],
        "priority": 4 if message.begun else 3,
    }
    return msgspec.json.encode(published)
