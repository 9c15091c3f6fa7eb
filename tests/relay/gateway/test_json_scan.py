"""A long body is read as a short one is, wherever it is cut."""

from __future__ import annotations

import json
from base64 import b64encode
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from wai_protocol.errors import RequestError
from wai_protocol.surface import Route
from wai_relay.gateway.bodies import Change, JsonBody, Outgoing, read_json
from wai_relay.gateway.dialects.dialect import Dialect
from wai_relay.gateway.dialects.openai import OpenAiDialect
from wai_relay.gateway.dialects.registry import DIALECTS
from wai_relay.gateway.json_scan import MAX_KEPT_BYTES, JsonScanner
from wai_relay.gateway.long_bodies import LongBody, read_long

CHAT = "/v1/chat/completions"
POINTS = st.lists(st.integers(0, 1 << 20), max_size=30)


def route(path: str) -> tuple[Dialect, Route]:
    found = DIALECTS.find_route("POST", path)
    assert found is not None
    return DIALECTS.of(path), found


def long_body(body: bytes, points: list[int], path: str = CHAT) -> LongBody:
    dialect, asked = route(path)
    return read_long(scanned(body, points, dialect), len(body), dialect, asked)


def scanned(body: bytes, points: list[int], dialect: Dialect) -> JsonScanner:
    scanner = JsonScanner(dialect)
    edges = [0, *sorted(point % (len(body) + 1) for point in points), len(body)]
    for a, b in pairwise(edges):
        piece, at = body[a:b], 0
        while at < len(piece):
            at = scanner.feed(piece, at)
            scanner.work = 0
    return scanner


def sent(body: bytes, outgoing: Outgoing) -> bytes:
    parts = [p if isinstance(p, bytes) else body[p.start : p.end] for p in outgoing.parts]
    assert outgoing.size == len(b"".join(parts))
    return b"".join(parts)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.text(max_size=8) | st.sampled_from(["messages", "input", "prompt", "role", 'a"b\\'])
SPACES = st.sampled_from([(",", ":"), (", ", ": "), ("\n,\t ", " :\r\n")])


@given(st.dictionaries(NAMES, VALUES, max_size=6), POINTS, SPACES, st.booleans())
def test_fields_are_those_that_msgspec_reads(
    fields: dict[str, Any], points: list[int], separators: tuple[str, str], ascii_only: bool
) -> None:
    text = json.dumps(fields, separators=separators, ensure_ascii=ascii_only)
    body = f" {text} \n".encode("utf-8", "replace")
    try:
        known = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:  # half a surrogate pair, which is the upstream's to refuse
        return
    scanner = scanned(body, points, OpenAiDialect())
    scanner.finish()
    assert list(scanner.spans) == list(known)
    for name, raw in known.items():
        start, end = scanner.spans[name]
        assert body[start:end] == bytes(raw)
        assert bytes(raw).startswith(bytes(scanner.fields[name]))


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system", "role"]),
            "content": st.text(max_size=60) | st.text(alphabet='ab \n\\"你', max_size=3000),
        },
        optional={"name": st.sampled_from(["role", "content", "x"])},
    ),
    max_size=5,
)


@given(MESSAGES, POINTS, st.booleans(), st.sampled_from([CHAT, "/v1/messages", "/api/chat"]))
def test_a_long_body_asks_for_what_a_short_one_does(
    messages: list[dict[str, str]], points: list[int], stream: bool, path: str
) -> None:
    fields = {
        "messages": messages,
        "system": "Be brief.",
        "tools": [{"type": "function"}],
        "max_tokens": 50,
        "stream": stream,
        "options": {"num_ctx": 9000},
        "model": "m",
    }
    body = json.dumps(fields, ensure_ascii=not stream).encode()
    dialect, asked = route(path)
    short, long = read_json(body, dialect, asked), long_body(body, points, path)
    for name in ("text_bytes", "images", "image_tokens"):
        assert getattr(long.facts.prompt, name) == getattr(short.facts.prompt, name)
    assert msgspec.structs.replace is not None
    assert long.facts.prefix == short.facts.prefix
    assert without_prompt(long) == without_prompt(short)
    assert long.last_role == short.last_role
    change = Change("other", ask_usage=True, ask_timings=True, fields={"max_tokens": b"9"})
    if messages:
        change = replace(change, message=b'{"role":"assistant","content":"so far"}')
    assert json.loads(sent(body, long.outgoing(change))) == json.loads(short.changed(change))
    assert sent(body, long.outgoing(Change("m"))) == body


def without_prompt(body: JsonBody | LongBody) -> list[object]:
    facts = body.facts
    return [
        *(facts.model, facts.stream, facts.wants_usage, facts.max_output_tokens, facts.has_tools),
        *(facts.answers, facts.context_tokens, facts.size_bytes, facts.whole),
    ]


PNG = b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x04\0\0\0\x03\0" + bytes(60_000)).decode()


@pytest.mark.parametrize("step", [1, 7, 63, 64, 65, 4096, 1 << 20])
@pytest.mark.parametrize(
    ("path", "content"),
    [
        (CHAT, {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PNG}}),
        ("/v1/messages", {"type": "image", "source": {"type": "base64", "data": PNG}}),
        ("/api/chat", {"images": [PNG, PNG[:5000]]}),
        (CHAT, {"type": "text", "text": PNG}),  # it is not where a picture stands
        (
            CHAT,
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "no " * 9000}},
        ),
    ],
)
def test_pictures_are_found_wherever_a_body_is_cut(
    path: str, content: dict[str, Any], step: int
) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "What?"}, content]}]
    body = json.dumps({"model": "m", "messages": messages}).encode()
    dialect, asked = route(path)
    known = read_json(body, dialect, asked).facts.prompt
    found = long_body(body, list(range(0, len(body), step)), path).facts.prompt
    assert (found.text_bytes, found.images) == (known.text_bytes, known.images)
    assert found.image_tokens == known.image_tokens


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","x":1,"model":"b"}',
        b'{"model":"a","Model":"b"}',
        b'{"model":"a","\\u006dodel":"b"}',
        b'{"model":5,"x":1}',
        b'{"model":{"a":1}}',
        b'["model","a"]',
        b'{"model":"' + b"m" * 5000 + b'"}',
        b'{"model":"m","x":' + b"[" * 600 + b"]" * 600 + b"}",
        b'{"model":"\xff"}',
        b'{"model":"m","x":"\xe4\xbd"}',
        b'{"model":"m"} trailing',
        b'{"model":"m"}{}',
        b'{"model":"m"',
        b'{"model":"m","x":"',
        b'{"model":"m",}',
        b'{"model":"m","x"}',
        b'{"model":"m","x":}',
        b'{"model":"m" "x":1}',
        b'{"model":"m","x":1 "y":2}',
        b'{"model":"m","x":"a" "b"}',
        b'{"model":"m","x":[1] [2]}',
        b'{,"model":"m"}',
        b'{"model":"m"]',
        b'{"x" "model":"secret","model":"m"}',
        b'{"model":"m","messages":"hi"}',
        b'{"model":"m","messages":null}',
        b'{"model":"m","stream":"yes"}',
        b'{"model":"m","max_tokens":1.' + b"1" * 100_000 + b"}",
        b'{"model":"m","stream_options":{"a":"' + b"x" * 100_000 + b'"}}',
        b'{"model":"m","' + b"k" * 2000 + b'":1}',
        b"",
        b"  ",
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_ambiguous_long_json_is_refused(body: bytes, step: int) -> None:
    with pytest.raises(RequestError):
        long_body(body, list(range(0, len(body), step)))


def test_a_byte_order_mark_is_not_sent_on() -> None:
    body = b'\xef\xbb\xbf{"model":"m","messages":[]}'
    assert sent(body, long_body(body, [1, 2]).outgoing(Change("m"))) == body[3:]
    assert read_json(body, *route(CHAT)).data == body[3:]


def test_long_values_are_not_kept() -> None:
    body = b'{"model":"m","grammar":"' + b"x" * (3 << 20) + b'","prompt":["a","b"],"n":2}'
    read = long_body(body, list(range(0, len(body), 65_536)), "/v1/completions")
    assert len(bytes(read.fields["grammar"])) == MAX_KEPT_BYTES + 1
    assert read.facts.answers == 4


def test_a_dialects_own_field_is_found_in_a_long_body() -> None:
    class Engines(OpenAiDialect):
        model_fields = ("engine",)

    body = b'{"model":"no","engine":"publisher/m","input":[]}'
    dialect = Engines()
    scanner = scanned(body, list(range(0, len(body), 7)), dialect)
    asked = DIALECTS.find_route("POST", CHAT)
    assert asked is not None
    assert read_long(scanner, len(body), dialect, asked).facts.model == "publisher/m"
