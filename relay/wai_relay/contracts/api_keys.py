"""An API key and what it may use, as plain values.

`access.keys` keeps them and recognises a caller's key; `policy.admission` holds a key to its
limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from wai_api.limits import KeyLimits
from wai_protocol.errors import AuthError, Fault

TRIAL_KEY_ID: Final = "key_trial"
"""The id of the keys with which `wai doctor` tries the way to a model. They are in memory only, for
minutes, and what is asked with them is not counted."""

# Before the key in a WebSocket's subprotocol, as OpenAI has it: a web page can send no header of
# its own with a WebSocket.
_KEY_PROTOCOL: Final = b"openai-insecure-api-key."


def key_among(protocols: Sequence[bytes]) -> bytes:
    """Return the secret of the key that is among a WebSocket's subprotocols; b"" if none is."""
    keys = (one for one in protocols if one.startswith(_KEY_PROTOCOL))
    return next(keys, b"").removeprefix(_KEY_PROTOCOL)


def without_key(protocols: Sequence[bytes]) -> list[bytes]:
    """Return the subprotocols that are no key."""
    return [one for one in protocols if not one.startswith(_KEY_PROTOCOL)]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the store knows it. `prefix` is its first characters, to recognise it by.

    `version` grows with every change. `revoked_at` is None for a key that is good.
    """

    id: str
    name: str
    sha256: bytes = field(repr=False)
    prefix: str
    limits: KeyLimits
    version: int
    created_at: float
    revoked_at: float | None = None
    labels: tuple[str, ...] = ()
    """Words that keys are grouped by, in order."""


class KeyRefused(AuthError):
    """A key was shown, and it is unknown, revoked or expired. `key`: see
    `RequestRecord.refused_key`."""

    def __init__(self, key: str) -> None:
        super().__init__("this API key is not known, or was revoked", Fault.KEY_INVALID)
        self.key = key
