"""JSON of upstreams that is none by the standard, and that a direct client reads all the same."""

from __future__ import annotations

import json
import math
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_relay.gateway.dialects.lenient import MAX_BYTES, MAX_ESCAPES, decode_leniently
from wai_relay.gateway.dialects.usage import decode


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'"a\\ud83d"', "a\ufffd"),
        (b'"\\ude00b"', "\ufffdb"),
        (b'"\\ud83d\\ud83d\\ude00"', "\ufffd\U0001f600"),
        (b'"\\\\ud83d \\\\\\ud83d"', "\\ud83d \\\ufffd"),
        (b'["\xff", "\xed\xa0\xbd"]', ["\ufffd", "\ufffd\ufffd\ufffd"]),
        (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
        (b"[-Infinity,1e999]", [-math.inf, math.inf]),
    ],
)
def test_what_clients_read_is_read(data: bytes, value: object) -> None:
    assert decode(data) == value
    msgspec.json.encode(decode(data))  # a translation writes it again


@pytest.mark.parametrize("data", [b"", b"<html>", b'{"a":', b"[" * 100_000, b"9" * 5000, b'"\\'])
def test_what_is_no_json_stays_none(data: bytes) -> None:
    assert decode(data) is None


@given(
    st.text(st.characters(min_codepoint=0xD7FE, max_codepoint=0xE001) | st.just("\\"), max_size=20)
)
def test_any_halves_are_replaced_one_by_one(text: str) -> None:
    read = decode(json.dumps(text).encode())
    assert isinstance(read, str)
    assert read.encode().decode() == read  # so there is no half left
    assert read.count("\\") == text.count("\\")


def test_a_hostile_document_costs_little() -> None:
    began = time.thread_time()
    for data in (b'"' + b"\\ud83d" * MAX_ESCAPES + b'"', b'"\xff' + b"\\" * MAX_BYTES, b"[NaN,"):
        decode_leniently((data * 2)[:MAX_BYTES])
    assert time.thread_time() - began < 0.5
