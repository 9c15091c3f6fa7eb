"""One undecoded value of a request body, decoded when somebody needs it. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from wai_protocol.errors import RequestError

MAX_SCALAR_BYTES: Final = 64  # of a number or a flag; the longest that is one has 20
MAX_OPTIONS_BYTES: Final = 64 * 1024  # of an object of options; real ones have under 2 KiB

_ANY: Final = msgspec.json.Decoder()


def value_of(raw: msgspec.Raw) -> Any:
    """The value. Raises `RequestError` if it is no JSON. The caller bounds its length."""
    try:
        return _ANY.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(f"The request body is not valid JSON: {error}.") from None


def scalar_of(raw: msgspec.Raw) -> Any:
    """A number, a flag or null; a list stands for what is too long to be one of them."""
    return value_of(raw) if len(bytes(raw)) <= MAX_SCALAR_BYTES else []


def options_of(raw: msgspec.Raw) -> Any:
    """An object of options. Raises `RequestError` if it is too long to be one."""
    if len(bytes(raw)) > MAX_OPTIONS_BYTES:
        raise RequestError(f"The request's options are longer than {MAX_OPTIONS_BYTES} bytes.")
    return value_of(raw)
