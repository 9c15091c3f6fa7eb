"""What llama.cpp's and LM Studio's own answers say of themselves, from recorded shapes."""

from __future__ import annotations

import pytest

from wai_protocol.surface import LLAMA_CPP_ROUTES, LM_STUDIO_ROUTES, Route
from wai_relay.gateway.dialects.dialect import EVENT_STREAM, Dialect, Signal
from wai_relay.gateway.dialects.llama_cpp import LLAMA_CPP
from wai_relay.gateway.dialects.lm_studio import LM_STUDIO

COMPLETION, STUDIO_CHAT = LLAMA_CPP_ROUTES[0], LM_STUDIO_ROUTES[0]
LLAMA_EVENTS = (
    b'data: {"index":0,"content":"He","tokens":[1],"stop":false,"id_slot":-1,'
    b'"tokens_predicted":1,"tokens_evaluated":5}\n\n',
    b'data: {"index":0,"content":"y","tokens":[2],"stop":false,"id_slot":-1,'
    b'"tokens_predicted":2,"tokens_evaluated":5}\n\n',
    b'data: {"index":0,"content":"","stop":true,"tokens_predicted":2,"tokens_evaluated":5,'
    b'"stop_type":"limit","prompt":"say \\"stop\\":true","timings":{"cache_n":3,"prompt_n":2,'
    b'"predicted_n":2}}\n\n',
)
STUDIO_EVENTS = (
    b'event: chat.start\ndata: {"type":"chat.start","model_instance_id":"m"}\n\n',
    b'event: message.delta\ndata: {"type":"message.delta","content":"Hey"}\n\n',
    b'event: chat.end\ndata: {"type":"chat.end","result":{"output":[{"type":"message","content":'
    b'"Hey"}],"stats":{"input_tokens":5,"total_output_tokens":2,"tokens_per_second":40.1}}}\n\n',
)


@pytest.mark.parametrize("pieces", [1, 2, 40])
@pytest.mark.parametrize(
    ("dialect", "route", "events", "cached"),
    [(LLAMA_CPP, COMPLETION, LLAMA_EVENTS, 3), (LM_STUDIO, STUDIO_CHAT, STUDIO_EVENTS, 0)],
)
def test_a_stream_is_passed_on_counted_and_known_to_be_whole(
    dialect: Dialect, route: Route, events: tuple[bytes, ...], cached: int, pieces: int
) -> None:
    reader = dialect.reader(route, EVENT_STREAM)
    whole, passed = b"".join(events), b""
    cut = whole.find(events[-1])
    step = max(cut // pieces, 1)
    for start in range(0, cut, step):
        passed += reader.feed(whole[start : min(start + step, cut)])
    assert not reader.ended
    passed += reader.feed(events[-1]) + reader.finish()
    assert passed == whole
    assert reader.ended
    assert not reader.failed
    counts = reader.counts(99)
    assert (counts.prompt, counts.cached, counts.completion, counts.exact) == (5, cached, 2, True)


def test_a_cut_stream_is_counted_by_its_pieces() -> None:
    reader = LLAMA_CPP.reader(COMPLETION, EVENT_STREAM)
    reader.feed(LLAMA_EVENTS[0])
    assert not reader.ended
    assert (reader.counts(7).prompt, reader.counts(7).completion) == (7, 1)


def test_a_whole_answer_tells_its_counts() -> None:
    llama = LLAMA_CPP.reader(COMPLETION, b"application/json")
    llama.feed(b'{"content":"Hey","tokens_predicted":2,"tokens_evaluated":5,"stop":true}')
    llama.finish()
    assert (llama.counts(9).prompt, llama.counts(9).completion) == (5, 2)
    studio = LM_STUDIO.reader(STUDIO_CHAT, b"application/json")
    studio.feed(b'{"output":[],"stats":{"input_tokens":5,"total_output_tokens":2}}')
    studio.finish()
    assert (studio.counts(9).prompt, studio.counts(9).completion) == (5, 2)


def test_the_first_content_is_no_role_and_no_start() -> None:
    judge = LM_STUDIO.signal_of(STUDIO_CHAT)
    assert judge("chat.start", {"type": "chat.start"}) is Signal.PREAMBLE
    assert judge("prompt_processing.progress", {"progress": 0.5}) is Signal.PREAMBLE
    assert judge("reasoning.delta", {"content": "x"}) is Signal.CONTENT
    assert judge("message.delta", {"content": "x"}) is Signal.CONTENT
    assert judge("chat.end", {"result": {}}) is Signal.END
    assert judge("error", {"error": {"message": "no"}}) is Signal.ERROR
    judge = LLAMA_CPP.signal_of(COMPLETION)
    assert judge("", {"content": "", "stop": False}) is Signal.PREAMBLE
    assert judge("", {"content": "x", "stop": False}) is Signal.CONTENT
    assert judge("", {"content": "", "stop": True}) is Signal.END
    assert judge("", {"error": {"code": 500, "message": "no"}}) is Signal.ERROR
