"""An answer of the admin API as the struct that describes it."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from wai_protocol.errors import TransportError

Answer = TypeVar("Answer")


def read_as(kind: type[Answer], answer: Any) -> Answer:
    """The decoded JSON of an answer as a `kind`. Fields that it does not know are ignored.

    Raises `TransportError` when a field is missing or has another type.
    """
    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError as error:
        raise TransportError(
            f"the relay's answer has another form than this wai knows ({error}): "
            "install the same version on both machines"
        ) from error
