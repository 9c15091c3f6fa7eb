"""The reader of foreign JSON: every document is a value within bounds or the one error."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_protocol.errors import Fault, WaiError
from wai_protocol.foreign_json import (
    MAX_DEPTH,
    MAX_INT,
    MIN_INT,
    ForeignJsonError,
    read_json,
)


class Listed(msgspec.Struct):
    id: str
    size: int = 0
    more: Any = None


def attempt(data: bytes | str, shape: Any) -> Any:
    try:
        return read_json(data, shape, "the answer")
    except ForeignJsonError as error:
        return error


SHAPES = [Any, dict[str, Any], list[Any], Listed, dict[str, Listed]]

HOSTILE = {
    "nothing": b"",
    "not-json": b"<html>",
    "not-utf-8": b'{"id": "\xff\xfe"}',
    "half-a-character": b'{"id": "\xe2\x82"}',
    "lone-surrogate": b'{"id": "\\ud800"}',
    "deep-list": b"[" * 100_000 + b"]" * 100_000,
    "deep-object": b'{"id":' * 100_000 + b"1" + b"}" * 100_000,
    "deep-and-open": b"[" * 100_000,
    "deep-in-an-unknown-field": b'{"id":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep-below-the-recursion-limit": b'{"id":"m","more":' + b"[" * 500 + b"]" * 500 + b"}",
    "huge-int": b'{"id":"m","size":' + b"9" * 4000 + b"}",
    "huger-int": b'{"id":"m","size":' + b"9" * 100_000 + b"}",
    "huge-negative-int": b'{"id":"m","size":-' + b"9" * 30 + b"}",
    "huge-int-deep-inside": b'{"id":"m","more":[{"a":[' + b"9" * 40 + b"]}]}",
    "huge-float": b'{"id":"m","size":1e99999}',
    "not-a-number": b'{"id":"m","size":NaN}',
    "nul": b"\x00",
    "utf-16": '{"id": "m"}'.encode("utf-16"),
    "trailing": b'{"id": "m"} {"id": "n"}',
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_document_is_a_wai_error_or_a_bounded_value(data: bytes, shape: Any) -> None:
    read = attempt(data, shape)
    if isinstance(read, WaiError):
        assert read.fault is Fault.UPSTREAM_BROKE
        assert str(read).startswith("the answer is not the JSON that was expected: ")
        assert len(str(read)) < 400
    else:  # what the shape does not name is skipped
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(read))


@pytest.mark.parametrize("data", [d for name, d in HOSTILE.items() if "unknown" not in name])
def test_nothing_of_this_passes_as_anything(data: bytes) -> None:
    with pytest.raises(ForeignJsonError):
        read_json(data, Any, "the answer")


def test_a_document_of_just_the_bounds_is_read() -> None:
    deep = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert read_json(deep, Any, "it")
    with pytest.raises(ForeignJsonError, match="deep"):
        read_json(b"[" + deep + b"]", Any, "it")
    assert read_json(f"[{MIN_INT}, {MAX_INT}]", list[int], "it") == [MIN_INT, MAX_INT]
    for beyond in (MIN_INT - 1, MAX_INT + 1):
        with pytest.raises(ForeignJsonError, match="64 bits"):
            read_json(f"[{beyond}]", Any, "it")
    assert read_json(b'"1234"', str, "it", limit_bytes=6) == "1234"
    with pytest.raises(ForeignJsonError, match="longer than 6 bytes"):
        read_json(b'"12345"', str, "it", limit_bytes=6)


def test_many_brackets_and_long_digits_in_strings_are_no_fault() -> None:
    text = "[" * 1000 + "9" * 1000
    assert read_json(msgspec.json.encode({"id": text}), Listed, "it").id == text
    rows = [{"id": str(n), "more": [n]} for n in range(1000)]
    assert len(read_json(msgspec.json.encode(rows), list[Listed], "it")) == 1000


def test_the_fault_is_the_callers_choice() -> None:
    with pytest.raises(ForeignJsonError) as caught:
        read_json(b"?", Any, "the body", fault=Fault.BAD_REQUEST)
    assert caught.value.fault is Fault.BAD_REQUEST


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_input_is_a_value_or_the_one_error(data: bytes | str) -> None:
    attempt(data, Any)
    attempt(data, Listed)
