"""How a relay shows another one of its fleet who it is, and for which admin it asks.

A pass is good for a minute, and at one relay only: what it says is signed with the key of the relay
that made it, together with the key of the one that it is for. It travels inside TLS.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final, NamedTuple

import msgpack

from .errors import AuthError, Fault
from .identity import KEY_BYTES, SIGNATURE_BYTES, RelayKey, verify

PREFIX: Final = "wai_rp_"
GOOD_S: Final = 60.0
"""Also how far the clocks of two machines may differ."""

MAX_CHARS: Final = 512
_MEANING: Final = b"wai relay pass\0"


class Pass(NamedTuple):
    """What a pass says: the public key of the relay that asks, and its admin's name."""

    relay: bytes
    actor: str


def make_pass(key: RelayKey, to: bytes, actor: str, now: float) -> str:
    """Return a pass of the relay with `key` for the one with the public key `to`.

    `now` is seconds since 1970.
    """
    said = [key.public, actor, int(now)]
    packed: bytes = msgpack.packb([*said, key.sign(_signed(to, said))])
    return PREFIX + base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def read_pass(text: str, own: bytes, now: float) -> Pass:
    """Check a pass that was shown to the relay with the public key `own`.

    Whether the relay that made it belongs to the fleet is the caller's to check. Raises
    `AuthError`.
    """
    if not text.startswith(PREFIX) or len(text) > MAX_CHARS:
        raise _bad("it is no pass")
    encoded = text[len(PREFIX) :]
    try:
        packed = base64.b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True)
        relay, actor, at, signature = msgpack.unpackb(packed, max_array_len=4)
    except (binascii.Error, ValueError, TypeError, msgpack.UnpackException) as error:
        raise _bad("it can't be read") from error
    if not (type(relay) is bytes and type(actor) is str and type(at) is int):
        raise _bad("it can't be read")
    if type(signature) is not bytes or len(relay) != KEY_BYTES:
        raise _bad("it can't be read")
    if len(signature) != SIGNATURE_BYTES:
        raise _bad("it is not signed")
    verify(relay, signature, _signed(own, [relay, actor, at]))
    if abs(now - at) > GOOD_S:
        raise _bad("it is over; do the clocks of the two relays differ by a minute?")
    return Pass(relay, actor)


def _signed(to: bytes, said: list[object]) -> bytes:
    packed: bytes = msgpack.packb([to, *said])
    return _MEANING + packed


def _bad(why: str) -> AuthError:
    return AuthError(f"a relay's pass is refused: {why}", Fault.KEY_INVALID)
