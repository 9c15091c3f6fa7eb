"""Read JSON that another program wrote, within bounds.

Everything that can go wrong in a foreign document becomes one error, `ForeignJsonError`: too many
bytes, text that is not UTF-8 or not JSON, another shape than the one asked for, nesting without
end, numbers that no integer or float of 64 bits holds. Callers so need one `except` clause, and
what they get is safe to walk through recursively and to send on as msgpack.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, TypeVar

import msgspec

from .errors import Fault, WaiError

MAX_BYTES: Final = 4 << 20
"""Of one document, unless the caller says otherwise. Ollama's list of 500 models is 300 kB."""

MAX_DEPTH: Final = 64
"""Levels of arrays and objects. JSON schemas in chat templates nest some twenty deep; what walks
through a value recursively must not come near to Python's limit of 1000 frames."""

MIN_INT: Final = -(1 << 63)
MAX_INT: Final = (1 << 64) - 1
"""The integers that msgpack carries. JSON itself has no bound."""

_LONG_NUMBER: Final = re.compile(rb"[0-9]{19}")

T = TypeVar("T")


class ForeignJsonError(WaiError):
    """A document of another program can't be used. `reason` says why, without the source."""

    default_fault = Fault.UPSTREAM_BROKE

    def __init__(self, source: str, reason: str, fault: Fault | None = None) -> None:
        super().__init__(f"{source} is not the JSON that was expected: {reason}", fault)
        self.reason = reason


def read_json(
    data: bytes | bytearray | str,
    shape: type[T],
    source: str,
    *,
    limit_bytes: int = MAX_BYTES,
    fault: Fault | None = None,
) -> T:
    """Decode `data` as `shape`: a msgspec struct, `dict[str, Any]`, or any other type.

    `source` names the document in the error's text, as "the answer to /api/tags". `fault` is the
    error's fault, `UPSTREAM_BROKE` if None. Raises `ForeignJsonError`.
    """
    key: Any = shape
    value: T = decode_json(_decoder(key), data, source, limit_bytes=limit_bytes, fault=fault)
    return value


def decode_json(
    decoder: msgspec.json.Decoder[T],
    data: bytes | bytearray | str,
    source: str,
    *,
    limit_bytes: int = MAX_BYTES,
    fault: Fault | None = None,
) -> T:
    """Do what `read_json` does with a decoder of the caller's own."""
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass")  # a lone surrogate is refused below
    if len(data) > limit_bytes:
        raise ForeignJsonError(source, f"it is longer than {limit_bytes} bytes", fault)
    try:
        value = decoder.decode(data)
    except msgspec.DecodeError as error:  # a wrong shape too
        raise ForeignJsonError(source, _plain(error), fault) from error
    except UnicodeDecodeError as error:
        raise ForeignJsonError(source, "it is not UTF-8", fault) from error
    except RecursionError as error:
        raise ForeignJsonError(source, _TOO_DEEP, fault) from error
    except (ValueError, OverflowError, MemoryError) as error:
        raise ForeignJsonError(source, "it holds a value beyond all bounds", fault) from error
    if _may_exceed_bounds(data):
        reason = _excess(value)
        if reason is not None:
            raise ForeignJsonError(source, reason, fault)
    return value


_TOO_DEEP: Final = f"it is nested more than {MAX_DEPTH} levels deep"


@lru_cache(maxsize=256)
def _decoder(shape: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(shape)


def _plain(error: Exception) -> str:
    """The decoder's words; they may quote a field's name, which the other program chose."""
    return str(error)[:200]


def _may_exceed_bounds(data: bytes | bytearray) -> bool:
    """A quick test of the text: False for nearly all documents, which need no walk then."""
    brackets = data.count(b"[") + data.count(b"{")
    return brackets > MAX_DEPTH or _LONG_NUMBER.search(data) is not None


def _excess(value: object) -> str | None:
    """Which bound `value` exceeds. It goes level by level, so that depth costs no recursion."""
    level: list[object] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        below: list[object] = []
        for container in level:
            for element in _elements(container):
                if isinstance(element, _CONTAINERS):
                    below.append(element)
                elif isinstance(element, int) and not MIN_INT <= element <= MAX_INT:
                    return "it holds an integer of more than 64 bits"
        if not below:
            return None
        level = below
    return _TOO_DEEP


_CONTAINERS: Final = (dict, list, tuple, set, frozenset, msgspec.Struct)


def _elements(container: Any) -> Iterable[object]:
    if isinstance(container, dict):
        return container.values()
    if isinstance(container, msgspec.Struct):
        return [getattr(container, name) for name in container.__struct_fields__]
    return container  # type: ignore[no-any-return]  # one of the sequences of `_CONTAINERS`
