"""Request bodies: what is read of them, what is refused, and what is changed in them."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_protocol.errors import RequestError
from wai_protocol.surface import Route
from wai_relay.gateway.bodies import Change, read_json
from wai_relay.gateway.dialects.dialect import Dialect
from wai_relay.gateway.dialects.registry import DIALECTS
from wai_relay.gateway.form_scan import FormModelScanner
from wai_relay.policy.fingerprints import BLOCK_BYTES, MAX_BLOCKS, fingerprint, shared_blocks


def route(path: str = "/v1/chat/completions") -> tuple[Dialect, Route]:
    found = DIALECTS.find_route("POST", path)
    assert found is not None
    return DIALECTS.of(path), found


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no body"),
        (b"  \n", "no body"),
        (b"{", "not valid JSON"),
        (b"hello", "not valid JSON"),
        (b"[1]", "JSON object"),
        (b"null", "JSON object"),
        (b"{}", "no model"),
        (b'{"messages":[]}', "no model"),
        (b'{"model":null}', "must be a string"),
        (b'{"model":7}', "must be a string"),
        (b'{"model":""}', "between 1 and"),
        (b'{"model":"' + b"m" * 257 + b'"}', "between 1 and"),
        (b'{"model":"m","stream":"yes"}', "`stream` must be"),
        (b'{"model":"m","stream_options":[]}', "`stream_options` must be"),
        (b'{"model":"m","max_tokens":"many"}', "`max_tokens` must be"),
        (b'{"model":"m","max_tokens":true}', "`max_tokens` must be"),
        (b'{"model":"m","messages":"hi"}', "`messages` must be a list"),
        (b'{"model":"m","x":"\xff"}', "not UTF-8"),
        (b'{"model":"m"} trailing', "not valid JSON"),
        (b'{"model":"m","x":"\\ud800"}', "half of a surrogate pair"),
        (b'{"model":"\\uDBFF"}', "half of a surrogate pair"),
        (b'{"model":"m","x":"\\\\\\uD801 a"}', "half of a surrogate pair"),
        (b'{"model":"m","x":"\\ud800\\u0041"}', "surrogate pair"),
        (b'{"model":"m","x":"\\udc00"}', "surrogate pair"),
        (b'{"model":"m","x":"\\ud83d\\ude00', "truncated"),
        (b'{"model":"m","x":"\\\\ud800', "truncated"),
        (b'{"model":"m","MODEL":"secret"}', "Unknown field"),
        (b'{"name":"m","Name":"secret"}', "Unknown field"),
        (b'{"model":' + b"[" * 100_000, "not valid JSON"),
    ],
)
def test_unusable_body_is_refused_with_its_reason(body: bytes, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        read_json(body, *route())


def test_facts_of_a_chat_body() -> None:
    body = {
        "messages": [{"role": "user", "content": "x" * 4000}],
        "model": "llama",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 50,
        "tools": [{"type": "function"}],
    }
    facts = read_json(json.dumps(body).encode(), *route()).facts
    assert (facts.model, facts.stream, facts.wants_usage) == ("llama", True, True)
    assert (facts.max_output_tokens, facts.has_tools) == (50, True)
    assert 4000 <= facts.prompt.text_bytes < 4100
    assert len(facts.prefix) == 1 + 2  # the tools, and two blocks of the message


@pytest.mark.parametrize("limit", ["8", "8.0", "8e0"])
def test_a_whole_number_may_be_written_with_decimals(limit: str) -> None:
    body = b'{"model":"m","max_tokens":%s}' % limit.encode()
    assert read_json(body, *route()).facts.max_output_tokens == 8
    with pytest.raises(RequestError, match="whole number"):
        read_json(b'{"model":"m","max_tokens":8.5}', *route())


def test_ollama_streams_unless_told_not_to() -> None:
    assert read_json(b'{"model":"m"}', *route("/api/chat")).facts.stream
    assert not read_json(b'{"model":"m","stream":false}', *route("/api/chat")).facts.stream
    assert not read_json(b'{"model":"m"}', *route()).facts.stream
    assert read_json(b'{"name":"m"}', *route("/api/show")).facts.model == "m"


def test_picture_is_not_counted_as_text() -> None:
    url = "data:image/png;base64," + "A" * 90_000
    content = [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    facts = read_json(json.dumps(body).encode(), *route()).facts
    assert facts.prompt.images == 1
    assert facts.prompt.text_bytes < 300


@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name.lower() not in {"model", "name"}),
        st.recursive(
            st.none() | st.booleans() | st.integers(-9, 9) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
        max_size=5,
    ),
    st.booleans(),
)
def test_rewriting_changes_what_it_must_and_nothing_else(
    fields: dict[str, object], ask_usage: bool
) -> None:
    for known in ("stream", "stream_options", "max_tokens", "messages", "input"):
        fields.pop(known, None)
    body = {**fields, "model": "alias"}
    read = read_json(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"), *route())
    assert read.changed(Change("alias", ask_usage=False)) == read.data
    sent = json.loads(read.changed(Change("real/model", ask_usage=ask_usage)))
    expected = {**json.loads(read.data), "model": "real/model"}
    if ask_usage:
        expected["stream_options"] = {"include_usage": True}
    assert sent == expected


def test_asking_for_usage_keeps_other_stream_options() -> None:
    body = b' {"model":"m","stream_options":{"include_usage":false,"x":1} , "n":1.50}'
    sent = read_json(body, *route()).changed(Change("m", ask_usage=True))
    assert json.loads(sent)["stream_options"] == {"include_usage": True, "x": 1}
    assert b"1.50" in sent
    plain = read_json(b' {"model":"m" , "n":1.50}', *route()).changed(Change("m", ask_usage=True))
    assert plain == b' {"stream_options":{"include_usage":true},"model":"m" , "n":1.50}'


def test_next_turn_shares_every_block_of_the_one_before() -> None:
    turn = [b"system prompt", b"a" * (3 * BLOCK_BYTES + 5), b"hello"]
    one, two = fingerprint(turn), fingerprint([*turn, b"answer", b"more"])
    assert shared_blocks(one, two) == len(one) == 6
    other = fingerprint([turn[0], b"b" + turn[1][1:], turn[2]])
    assert shared_blocks(one, other) == 1
    assert len(fingerprint([b"x" * BLOCK_BYTES * 1000])) == MAX_BLOCKS


def scan(scanner: FormModelScanner, body: bytes, points: list[int]) -> None:
    edges = [0, *sorted(point % (len(body) + 1) for point in points), len(body)]
    for a, b in pairwise(edges):
        scanner.feed(body[a:b])


FORM = (
    b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
    b"Content-Type: audio/wav\r\n\r\n" + bytes(range(256)) + b"\r\n--\r\n--x\r\n"
    b'\r\n--B\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--B--\r\n'
)


@given(st.lists(st.integers(0, len(FORM)), max_size=30))
def test_model_is_found_in_a_form_cut_anywhere(points: list[int]) -> None:
    scanner = FormModelScanner(b'multipart/form-data; boundary="B"')
    scan(scanner, FORM, points)
    assert scanner.model == "whisper-1"
    assert FORM[scanner.start : scanner.end] == b"whisper-1"


def test_form_without_boundary_or_with_two_models_is_refused() -> None:
    with pytest.raises(RequestError, match="boundary"):
        FormModelScanner(b"multipart/form-data")
    part = b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n'
    scanner = FormModelScanner(b"multipart/form-data; boundary=B")
    with pytest.raises(RequestError, match="twice"):
        scanner.feed(part + part + b"--B--")


def test_a_dialects_own_field_is_found_in_a_form() -> None:
    form = FORM.replace(b'name="model"', b'name="engine"')
    part = FormModelScanner(b"multipart/form-data; boundary=B", "engine")
    scan(part, form, [100])
    assert part.model == "whisper-1"
