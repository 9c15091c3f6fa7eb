"""Answers pass byte for byte, wherever they are cut, and what they cost is read on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wai_protocol.errors import Fault
from wai_relay.gateway.dialects.registry import DIALECTS
from wai_relay.gateway.dialects.usage import MAX_EVENT_BYTES, UsageReader

# As llama-server b11549 sends them (shared facts), with include_usage.
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null}}]}\n\n'
HELLO = b'data: {"choices":[{"index":0,"delta":{"content":"Hel \\"usage\\" lo"}}]}\n\n'
WORLD = 'data: {"choices":[{"index":0,"delta":{"content":" wörld 🌍"}}]}\n\n'.encode()
STOP = b'data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}]}\n\n'
USAGE = (
    b'data: {"choices":[],"object":"chat.completion.chunk","usage":{"completion_tokens":7,'
    b'"prompt_tokens":21,"total_tokens":28,"prompt_tokens_details":{"cached_tokens":5}},'
    b'"timings":{"cache_n":5,"prompt_n":16,"predicted_n":7,"predicted_per_second":50.5}}\n\n'
)
TIMINGS = (
    b'data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}],'
    b'"timings":{"cache_n":4,"prompt_n":6,"predicted_n":9}}\n\n'
)
KEEPALIVE = b":\n\n"
DONE = b"data: [DONE]\n\n"
ANTHROPIC = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","usage":'
    b'{"input_tokens":11,"cache_read_input_tokens":4,"output_tokens":1}}}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"Hi"}}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
    b'"usage":{"output_tokens":6}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)
OLLAMA = (
    b'{"model":"m","message":{"role":"assistant","content":"\\"eval_count\\":99"},"done":false}\n',
    b'{"model":"m","message":{"role":"assistant","content":"b"},"done":false}\n',
    b'{"model":"m","done":true,"prompt_eval_count":26,"prompt_eval_duration":1,"eval_count":298}\n',
)
RESPONSES = (
    b"event: response.output_text.delta\n"
    b'data: {"type":"response.output_text.delta","delta":"x"}\n\n',
    b'event: response.completed\ndata: {"type":"response.completed","response":{"usage":'
    b'{"input_tokens":8,"output_tokens":3,"input_tokens_details":{"cached_tokens":2}}}}\n\n',
)


def reader_for(path: str, content_type: bytes, **strip: bool) -> UsageReader:
    route = DIALECTS.find_route("POST", path)
    assert route is not None
    return DIALECTS.of(path).reader(route, content_type, **strip)


def cut(data: bytes, points: list[int]) -> list[bytes]:
    edges = [0, *sorted(point % (len(data) + 1) for point in points), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def run(reader: UsageReader, chunks: list[bytes]) -> bytes:
    return b"".join([*(reader.feed(chunk) for chunk in chunks), reader.finish()])


def openai(*, strip: bool = False, path: str = "/v1/chat/completions") -> UsageReader:
    return reader_for(path, b"text/event-stream; charset=utf-8", strip_usage=strip)


def anthropic() -> UsageReader:
    return reader_for("/v1/messages", b"text/event-stream", strip_usage=False)


def ollama() -> UsageReader:
    return reader_for("/api/chat", b"application/x-ndjson", strip_usage=False)


cuts = st.lists(st.integers(0, 2000), max_size=40)


@given(points=cuts, line_end=st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_injected_usage_chunk_is_stripped_wherever_the_stream_is_cut(
    points: list[int], line_end: bytes
) -> None:
    def framed(data: bytes) -> bytes:
        return data.replace(b"\n", line_end)

    reader = openai(strip=True)
    answer = ROLE + KEEPALIVE + HELLO + WORLD + STOP
    sent = run(reader, cut(framed(answer + USAGE + DONE), points))
    assert sent == framed(answer + DONE)
    counts = reader.counts(1)
    assert (counts.prompt, counts.cached, counts.completion, counts.exact) == (21, 5, 7, True)


@given(points=cuts)
def test_usage_chunk_stays_for_a_caller_who_asked(points: list[int]) -> None:
    reader = openai()
    whole = ROLE + HELLO + STOP + USAGE + DONE
    assert run(reader, cut(whole, points)) == whole
    assert reader.counts(1).exact


@pytest.mark.parametrize(
    ("make", "events", "expected"),
    [
        (openai, (ROLE, HELLO, WORLD, TIMINGS, DONE), (10, 4, 9)),
        (openai, RESPONSES, (8, 2, 3)),
        (anthropic, ANTHROPIC, (15, 4, 6)),
        (ollama, OLLAMA, (26, 0, 298)),
    ],
)
@given(points=cuts)
def test_counts_are_exact_in_every_dialect_wherever_cut(
    make: Callable[[], UsageReader],
    events: tuple[bytes, ...],
    expected: tuple[int, int, int],
    points: list[int],
) -> None:
    reader = make()
    whole = b"".join(events)
    assert run(reader, cut(whole, points)) == whole
    counts = reader.counts(1)
    assert (counts.prompt, counts.cached, counts.completion) == expected
    assert counts.exact


@pytest.mark.parametrize("step", [100, 1000, 100_000])
@pytest.mark.parametrize("text_bytes", [10, 3000, 2 * MAX_EVENT_BYTES])
def test_ollamas_end_of_a_response_is_found_though_it_names_itself_last(
    text_bytes: int, step: int
) -> None:
    answer = {"output": [{"text": "a" * text_bytes}], "usage": {"output_tokens": 3}}
    data = {"response": answer, "sequence_number": 9, "type": "response.completed"}
    event = b"event: response.completed\ndata: " + json.dumps(data).encode() + b"\n\n"
    reader = reader_for("/v1/responses", b"text/event-stream")
    whole = RESPONSES[0] + event
    passed = b"".join(reader.feed(whole[at : at + step]) for at in range(0, len(whole), step))
    assert passed + reader.finish() == whole
    assert reader.ended
    assert not reader.failed


@pytest.mark.parametrize(
    ("event", "failed"),
    [
        (b'{"id":"x","choices":[],"error":{"message":"out of memory","code":500}}', True),
        (b'{"id":"x","choices":[{"index":0,"error": { "code":502},"delta":{}}]}', True),
        (b'{"id":"x","choices":[{"index":0,"delta":{"content":"\\"error\\":{\\"a\\""}}]}', False),
        (b'{"id":"x","choices":[{"index":0,"finish_reason":"stop"}],"error":null}', False),
        (b'{"id":"x","choices":[{"index":0,"finish_reason":"stop"}],"error":{}}', False),
    ],
)
def test_an_error_within_a_chunk_is_one_though_the_end_mark_follows(
    event: bytes, failed: bool
) -> None:
    reader = openai()
    run(reader, [ROLE, HELLO, b"data: " + event + b"\n\n", DONE])
    assert reader.ended
    assert reader.failed is failed


def test_cancelled_stream_is_estimated_by_its_chunks() -> None:
    reader = openai(strip=True)
    for chunk in (ROLE, HELLO, WORLD, HELLO):
        reader.feed(chunk)
    counts = reader.counts(33)
    assert (counts.prompt, counts.completion, counts.exact) == (33, 3, False)


def test_cancelled_anthropic_stream_keeps_the_prompt_it_was_told() -> None:
    reader = anthropic()
    reader.feed(ANTHROPIC[0] + ANTHROPIC[1] * 5)
    counts = reader.counts(1)
    assert (counts.prompt, counts.completion, counts.exact) == (15, 5, False)


def test_ollama_prompt_from_cache_is_estimated_and_said_so() -> None:
    reader = ollama()
    reader.feed(b'{"done":true,"eval_count":4}\n')
    counts = reader.counts(17)
    assert (counts.prompt, counts.completion, counts.exact) == (17, 4, False)


def test_usage_null_in_every_chunk_is_no_usage() -> None:
    reader = openai(strip=True)
    chunk = b'data: {"choices":[{"delta":{"content":"a"}}],"usage":null}\n\n'
    assert reader.feed(chunk) == chunk
    assert reader.counts(3).exact is False


@pytest.mark.parametrize("nothing", ["0", "null", '"7"'])
def test_usage_that_tells_nothing_replaces_no_estimate(nothing: str) -> None:
    usage = f'"usage":{{"prompt_tokens":{nothing},"completion_tokens":{nothing}}}'.encode()
    token = b'data: {"choices":[{"delta":{"content":"a"}}],' + usage + b"}\n\n"
    injected = b'data: {"choices":[],' + usage + b"}\n\n"
    reader = openai(strip=True)
    assert run(reader, [token, token, token, injected]) == token * 3
    counts = reader.counts(5)
    assert (counts.prompt, counts.completion, counts.exact) == (5, 2, False)


def test_usage_may_be_written_with_decimals() -> None:
    reader = openai(strip=True)
    run(reader, [b'data: {"choices":[],"usage":{"prompt_tokens":7.0,"completion_tokens":3.0}}\n\n'])
    counts = reader.counts(5)
    assert (counts.prompt, counts.completion, counts.exact) == (7, 3, True)


def test_broken_stream_ends_at_an_event_border() -> None:
    reader = openai()
    assert reader.feed(HELLO + b'data: {"choices":[{"del') == HELLO
    assert reader.broken() == b""
    event = DIALECTS.of("/v1/chat/completions").error_event(Fault.SESSION_LOST, "the node is gone")
    assert event.startswith(b'data: {"error":{')
    assert event.endswith(b"\n\n")


@given(extra=st.integers(-2, 2), step=st.integers(1000, 70_000))
def test_event_of_any_length_is_passed_whole_and_in_order(extra: int, step: int) -> None:
    reader = openai(strip=True)
    long = b'data: {"x":"' + b"y" * (MAX_EVENT_BYTES - 14 + extra) + b'"}\n\n'
    whole = ROLE + long + HELLO + USAGE + DONE
    chunks = [whole[i : i + step] for i in range(0, len(whole), step)]
    assert run(reader, chunks) == ROLE + long + HELLO + DONE
    assert reader.counts(1).completion == 7


def test_endless_event_is_not_held() -> None:
    reader = openai()
    sent = 0
    for _ in range(100):
        sent += len(reader.feed(b"z" * 16_384))
    assert sent > 95 * 16_384
    assert reader.broken() == b"\n\n"


@pytest.mark.parametrize("vector_bytes", [10, 100_000])
def test_plain_body_usage_is_found_at_either_end(vector_bytes: int) -> None:
    usage = {"prompt_tokens": 8, "total_tokens": 8}
    filler = {"data": [{"embedding": "9" * vector_bytes}]}
    for document in ({"usage": usage, **filler}, {**filler, "usage": usage}):
        reader = reader_for("/v1/embeddings", b"application/json", strip_usage=False)
        text = json.dumps(document).encode()
        assert run(reader, [text[i : i + 700] for i in range(0, len(text), 700)]) == text
        assert (reader.counts(1).prompt, reader.counts(1).exact) == (8, True)


def test_answer_that_quotes_a_usage_object_is_not_believed() -> None:
    reader = reader_for("/v1/completions", b"application/json", strip_usage=False)
    lie = 'a \\"usage\\": {"prompt_tokens": 1}, "usage": {"prompt_tokens": 999}'
    text = json.dumps({"usage": {"prompt_tokens": 4, "completion_tokens": 2}, "text": lie}).encode()
    run(reader, [text])
    assert reader.counts(1).prompt == 4


def test_garbage_instead_of_usage_is_passed_and_not_counted() -> None:
    reader = openai(strip=True)
    garbage = b'data: {"usage": {"prompt_tokens": -5, "completion_tokens": "x"}, \xff\n\n'
    assert run(reader, [garbage]) == garbage
    assert reader.counts(2).exact is False


TIMED = (
    b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"object":"chunk",'
    b'"timings":{"cache_n":40,"prompt_n":3,"prompt_ms":1.4,"predicted_n":%d}}\n\n'
)
BARE = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"object":"chunk"}\n\n'


def timed_reader() -> UsageReader:
    return reader_for(
        *("/v1/chat/completions", b"text/event-stream"),
        strip_usage=True,
        strip_timings=True,
    )


def test_timings_that_the_relay_asked_for_stay_with_it_however_the_stream_is_split() -> None:
    stream = b"".join(TIMED % n for n in range(1, 6))
    for cut in range(len(stream)):
        reader = timed_reader()
        passed = reader.feed(stream[:cut]) + reader.feed(stream[cut:]) + reader.finish()
        assert passed == BARE * 5
        counts = reader.counts(99)
        assert (counts.prompt, counts.cached, counts.completion) == (43, 40, 5)


def test_a_cut_stream_counts_tokens_as_llama_cpp_does_and_says_that_it_may_be_ahead() -> None:
    reader = timed_reader()
    reader.feed(TIMED % 7)  # one chunk, seven tokens: half a character is held back
    counts = reader.counts(99)
    assert (counts.completion, counts.exact) == (7, False)


def test_a_final_usage_wins_over_the_timings_before_it() -> None:
    reader = timed_reader()
    last = (
        b'data: {"choices":[],"usage":{"prompt_tokens":43,"completion_tokens":8},'
        b'"timings":{"cache_n":40,"prompt_n":3,"predicted_n":8}}\n\n'
    )
    assert reader.feed(TIMED % 7 + last + b"data: [DONE]\n\n") == BARE + b"data: [DONE]\n\n"
    counts = reader.counts(99)
    assert (counts.prompt, counts.completion, counts.exact) == (43, 8, True)


FINISH = b'data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"object":"chunk"}\n\n'
LAST_TIMINGS = b',"timings":{"cache_n":40,"prompt_n":3,"predicted_n":8}'
LAST_USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":43,"completion_tokens":8}%b}\n\n' % LAST_TIMINGS
)
DONE = b"data: [DONE]\n\n"


def test_the_last_timings_reach_the_caller_as_without_our_asking_for_usage() -> None:
    """llama-server moves them from the finish event into the usage chunk, which we take out."""
    stream = TIMED % 7 + TIMED % 8 + FINISH + LAST_USAGE + DONE
    wanted = BARE + BARE + FINISH[:-3] + LAST_TIMINGS + b"}\n\n" + DONE
    for cut in range(len(stream)):
        reader = timed_reader()
        passed = reader.feed(stream[:cut]) + reader.feed(stream[cut:]) + reader.finish()
        assert passed == wanted
    events = [TIMED % 7, TIMED % 8, FINISH, LAST_USAGE, DONE]
    assert run(timed_reader(), events) == wanted


def test_a_caller_who_asked_for_timings_keeps_the_last_ones_too() -> None:
    events = [TIMED % 7, FINISH, LAST_USAGE, DONE]
    passed = run(openai(strip=True), events)
    assert passed == TIMED % 7 + FINISH[:-3] + LAST_TIMINGS + b"}\n\n" + DONE


@pytest.mark.parametrize(
    "after", [[], [DONE], [BARE, DONE], [LAST_USAGE.replace(LAST_TIMINGS, b"")]]
)
def test_an_end_without_last_timings_passes_as_it_is(after: list[bytes]) -> None:
    passed = run(timed_reader(), [TIMED % 7, FINISH, *after])
    assert passed == BARE + FINISH + b"".join(e for e in after if b"usage" not in e)


def test_an_end_that_waited_for_its_timings_is_not_lost_by_a_cut() -> None:
    reader = timed_reader()
    assert reader.feed(TIMED % 7) + reader.feed(FINISH) == BARE
    assert reader.held_back() == FINISH
    assert reader.held_back() == b""


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("make", [openai, anthropic])
def test_an_event_passes_when_it_is_whole_however_its_lines_end(
    make: Callable[[], UsageReader], line_end: bytes
) -> None:
    events = (ROLE, HELLO, WORLD) if make is openai else ANTHROPIC[:3]
    reader = make()
    for event in events:
        framed = event.replace(b"\n", line_end)
        assert reader.feed(framed[:9]) == b""
        assert reader.feed(framed[9:]) == framed
    failing = make()
    failing.feed(b'event: error\ndata: {"error":{}}\n\n'.replace(b"\n", line_end))
    assert failing.failed


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_a_stream_of_lines_passes_at_once_on_a_path_whose_streams_are_events(path: str) -> None:
    reader = reader_for(path, b"application/x-ndjson; charset=utf-8")
    lines = [b'{"delta":"a"}\n', b'{"delta":"b"}\n', b'{"del']
    for line in lines:
        assert reader.feed(line) == line
    assert reader.counts(5).completion == 2
    last = b'ta":"c","usage":{"input_tokens":3,"output_tokens":4}}\n'
    assert reader.feed(last) == last
    assert reader.finish() == b""
    counts = reader.counts(5)
    assert (counts.prompt, counts.completion, counts.exact) == (3, 4, True)
