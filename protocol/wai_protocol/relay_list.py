"""The relays that share one fleet, as a relay tells its nodes (SPEC section 6, `relays.list`)."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from .errors import RequestError
from .identity import KEY_BYTES
from .invite import is_pin
from .known_relay import KnownRelay, is_place

METHOD: Final = "relays.list"
"""The CALL whose params are a list."""

MAX_RELAYS: Final = 16  # each costs a node a session; who needs more needs larger machines
MAX_URL_CHARS: Final = 512
_MAX_VERSION: Final = 1 << 62


class RelayList(msgspec.Struct, frozen=True):
    """All relays of a fleet. A list with a higher `version` is newer, whoever tells it."""

    version: int = 0
    relays: tuple[KnownRelay, ...] = ()

    def to_map(self) -> dict[str, Any]:
        """Return the params of the CALL, in which keys and hashes are hex, so that JSON has them
        too."""
        return {
            "version": self.version,
            "relays": list(map(_map_of, self.relays)),
        }

    @classmethod
    def from_map(cls, value: Any) -> RelayList:
        """Check what a relay or the disk says. Raises `RequestError`."""
        try:
            version, told = value["version"], value["relays"]
            if type(version) is not int or not 0 <= version < _MAX_VERSION:
                raise ValueError("its version is no number")
            if not isinstance(told, list) or not 1 <= len(told) <= MAX_RELAYS:
                raise ValueError(f"it has not 1 to {MAX_RELAYS} relays")
            relays = tuple(map(_relay_of, told))
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"this list of relays can't be used: {error}") from error
        if len({one.public for one in relays}) < len(relays):
            raise RequestError("this list of relays names one of them twice")
        return cls(version, relays)


def _map_of(one: KnownRelay) -> dict[str, Any]:
    pin = one.pin.hex() if one.pin is not None else None
    told = {"url": one.url, "public": one.public.hex(), "pin": pin}
    return {**told, "dial": one.dial} if one.dial else told


def _relay_of(value: Any) -> KnownRelay:
    url, pin, dial = value["url"], value["pin"], value.get("dial", "")
    if not isinstance(url, str) or not url.startswith(("https://", "http://")):
        raise ValueError("a URL does not begin with https://")
    if len(url) > MAX_URL_CHARS:
        raise ValueError(f"a URL has more than {MAX_URL_CHARS} characters")
    public = bytes.fromhex(value["public"])
    if len(public) != KEY_BYTES:
        raise ValueError(f"a key has {len(public)} bytes, and not {KEY_BYTES}")
    pinned = bytes.fromhex(pin) if pin is not None else None
    if pinned is not None and not is_pin(pinned):
        raise ValueError(f"a pin has {len(pinned)} bytes")
    if dial != "" and not is_place(dial):
        raise ValueError("what is to be dialled is not HOST:PORT")
    return KnownRelay(url, public, pinned, dial)
