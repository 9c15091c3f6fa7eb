"""A webhook: JSON by POST, signed with a shared secret.

    X-WAI-Signature: t=1800000000,v1=HEX

HEX is the HMAC-SHA-256, with the secret, of the time in `t`, a full stop and the body. Who checks
it refuses an old `t`, so that nobody can send an old message again.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

import msgspec

from wai_protocol.surface import Headers
from wai_transport.http_proxy import ProxySettings

from .config import WebhookConfig
from .message import Message
from .post import Poster

MAX_LISTED: Final = 100  # problems of each sort in one body: 100 KB at most


class Webhook:
    """See `Receiver`."""

    def __init__(self, config: WebhookConfig, proxies: ProxySettings) -> None:
        """Raises `WaiError` for a secret or a file that can't be read."""
        self._secret = config.read_secret().encode()
        self._poster = Poster(config.url, config.ca_file, proxies)
        self.name = f"webhook {self._poster.origin.place}"

    async def deliver(self, message: Message) -> None:
        """See `Receiver`."""
        body = body_of(message)
        headers: Headers = [(b"content-type", b"application/json")]
        if self._secret:
            headers.append((b"x-wai-signature", signature(self._secret, int(message.at), body)))
        await self._poster.post(headers, body)

    async def aclose(self) -> None:
        """See `Receiver`."""
        await self._poster.aclose()


def body_of(message: Message) -> bytes:
    """What is posted."""
    return msgspec.json.encode(
        {
            "event": "test" if message.test else "problems",
            "at": message.at,
            "relay": message.relay,
            "title": message.title,
            "text": message.text,
            "problems": message.begun[:MAX_LISTED],
            "recovered": message.over[:MAX_LISTED],
            "others_lasting": message.lasting,
        }
    )


def signature(secret: bytes, at: int, body: bytes) -> bytes:
    """The value of the header."""
    mac = hmac.new(secret, b"%d." % at + body, hashlib.sha256)
    return b"t=%d,v1=%b" % (at, mac.hexdigest().encode())
