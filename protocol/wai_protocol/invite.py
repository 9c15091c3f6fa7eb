"""Encode and decode invites: a string with which a node finds, verifies and joins a relay, once.

An invite is `wai_inv_` and the base64url (no padding) of a msgpack map (SPEC section 2). Whether it
is still valid is checked by the relay, not here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, urlsplit

import msgpack

from .errors import AuthError, Fault
from .known_relay import KnownRelay, is_place

PREFIX: Final = "wai_inv_"
FORMAT: Final = 1
MAX_CHARS: Final = 1024  # a real invite has about 220
MAX_URL_CHARS: Final = 512
MIN_SECRET_BYTES: Final = 16  # 128 bits cannot be guessed
MAX_SECRET_BYTES: Final = 64
DIGEST_BYTES: Final = 32  # SHA-256, and an Ed25519 public key
MAX_ALSO: Final = 8  # three to four have room within MAX_CHARS
MAX_PINS: Final = 4  # two proxies, each with its current and its next key


@dataclass(frozen=True, slots=True)
class Invite:
    """The content of an invite.

    `url`: the relay's `https://host[:port]` (or `http://` for a relay without TLS in a test).
    `relay`: its Ed25519 public key. `pin`: the SHA-256 of its certificate's SubjectPublicKeyInfo,
    or up to `MAX_PINS` such hashes joined (see `pins_in`), of which any may match; None if the
    system trusts the certificate. `dial`: see `KnownRelay`. `also`: other relays of the same fleet
    that redeem it, where this one can't be reached.
    """

    url: str
    relay: bytes
    secret: bytes = field(repr=False)
    pin: bytes | None = None
    dial: str = ""
    also: tuple[KnownRelay, ...] = ()

    def __post_init__(self) -> None:
        _check_relay(KnownRelay(self.url, self.relay, self.pin, self.dial))
        if not MIN_SECRET_BYTES <= len(self.secret) <= MAX_SECRET_BYTES:
            raise _bad(f"its secret does not have {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes")

    def encode(self) -> str:
        """Return the string that a person copies to the node, with as many of the other relays as
        there is room for."""
        fields: dict[str, object] = {
            "v": FORMAT,
            "url": self.url,
            "pin": self.pin,
            "relay": self.relay,
            "secret": self.secret,
        }
        if self.dial:
            fields["dial"] = self.dial
        text = _encoded(fields)
        for count in range(1, min(len(self.also), MAX_ALSO) + 1):
            also = [[one.url, one.public, one.pin, one.dial] for one in self.also[:count]]
            longer = _encoded({**fields, "also": msgpack.packb(also)})
            if len(longer) > MAX_CHARS:
                break
            text = longer
        return text

    @property
    def relays(self) -> tuple[KnownRelay, ...]:
        """Everybody who redeems it, in the order in which a node asks."""
        return (KnownRelay(self.url, self.relay, self.pin, self.dial), *self.also)


def decode(text: str) -> Invite:
    """Decode an invite. Raises `AuthError` (INVITE_INVALID) that says what is wrong with it."""
    text = text.strip()
    if not text.startswith(PREFIX):
        raise _bad(f"it does not begin with {PREFIX}")
    if len(text) > MAX_CHARS:
        raise _bad("it is too long")
    fields = _unpack(text[len(PREFIX) :])
    if fields.get("v") != FORMAT or fields["v"] is True:
        raise _bad("it was made by a relay of another version; update wai on this machine")
    url, relay, secret = fields.get("url"), fields.get("relay"), fields.get("secret")
    pin = fields.get("pin")
    if not isinstance(url, str) or not isinstance(relay, bytes) or not isinstance(secret, bytes):
        raise _bad("a part of it is missing")
    if pin is not None and not isinstance(pin, bytes):
        raise _bad("its certificate pin is not a byte string")
    dial, also = fields.get("dial", ""), _others(fields.get("also"))
    if not isinstance(dial, str):
        raise _bad("what is to be dialled is no text")
    return Invite(url=url, relay=relay, secret=secret, pin=pin, dial=dial, also=also)


def _others(packed: object) -> tuple[KnownRelay, ...]:
    if packed is None:
        return ()
    try:
        if not isinstance(packed, bytes):
            raise TypeError
        found = [KnownRelay(*one) for one in msgpack.unpackb(packed, max_array_len=MAX_ALSO)]
    except (TypeError, ValueError, msgpack.UnpackException) as error:
        raise _bad("its other relays can't be read") from error
    for one in found:
        if not isinstance(one.url, str) or not isinstance(one.public, bytes):
            raise _bad("its other relays can't be read")
        _check_relay(one)
    return tuple(found)


def _encoded(fields: dict[str, object]) -> str:
    packed: bytes = msgpack.packb(fields)
    return PREFIX + base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def _check_relay(one: KnownRelay) -> None:
    _check_url(one.url)
    if len(one.public) != DIGEST_BYTES:
        raise _bad("its relay key does not have 32 bytes")
    if one.pin is not None and not (isinstance(one.pin, bytes) and is_pin(one.pin)):
        raise _bad(f"its certificate pin is not 1 to {MAX_PINS} times 32 bytes")
    if one.dial != "" and not is_place(one.dial):
        raise _bad("what is to be dialled is not HOST:PORT")


def is_pin(pin: bytes) -> bool:
    """Return whether `pin` consists of 1 to `MAX_PINS` whole hashes."""
    return len(pin) in range(DIGEST_BYTES, MAX_PINS * DIGEST_BYTES + 1, DIGEST_BYTES)


def pins_in(pin: bytes) -> list[bytes]:
    """Split a pin into its hashes. A key that matches any of them is accepted."""
    return [pin[at : at + DIGEST_BYTES] for at in range(0, len(pin), DIGEST_BYTES)]


def secret_sha256(secret: bytes) -> bytes:
    """Return the hash of an invite's secret, which is all that the relay stores of it."""
    return hashlib.sha256(secret).digest()


def _unpack(encoded: str) -> dict[str, object]:
    # urlsafe_b64decode ignores characters that are not in its alphabet; a mistyped invite must
    # fail.
    if not encoded.replace("-", "").replace("_", "").isalnum() or not encoded.isascii():
        raise _bad("it has characters that do not belong there")
    try:
        packed = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        fields = msgpack.unpackb(packed, max_map_len=16, max_array_len=0)
    except (binascii.Error, ValueError, msgpack.UnpackException) as error:
        raise _bad("it is damaged; was all of it copied?") from error
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise _bad("it is damaged; was all of it copied?")
    return fields


def _check_url(url: str) -> None:
    if len(url) > MAX_URL_CHARS:
        raise _bad("its URL is too long")
    # urlsplit removes line breaks and tabs silently; the URL must be used exactly as it was written
    if not url.isascii() or not url.isprintable() or " " in url:
        raise _bad("its URL has characters that do not belong there")
    try:
        parts: SplitResult = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _bad("its URL cannot be read") from error
    if parts.scheme not in ("https", "http") or not parts.hostname or port == 0:
        raise _bad("its URL is not https://host[:port]")
    if parts.username is not None or parts.query or parts.fragment or parts.path not in ("", "/"):
        raise _bad("its URL has more than a host and a port")


def _bad(why: str) -> AuthError:
    return AuthError(f"this invite cannot be used: {why}", Fault.INVITE_INVALID)
