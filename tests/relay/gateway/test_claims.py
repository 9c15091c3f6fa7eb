"""What a request may take of its key's tokens, whatever it calls its limits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wai_protocol.status import ModelStatus, NodeStatus
from wai_relay.contracts.upstream import ServingNode
from wai_relay.gateway.bodies import BodyFacts, read_json
from wai_relay.gateway.claims import ASSUMED_CONTEXT_TOKENS, largest_context, token_claim
from wai_relay.gateway.dialects.registry import DIALECTS
from wai_relay.policy.admission import UNBOUNDED, TokenClaim

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def claim(path: str, *, context: int | None = 4096, **fields: Any) -> TokenClaim:
    route = DIALECTS.find_route("POST", path)
    assert route is not None
    body = json.dumps({"model": "m", **fields}).encode()
    return token_claim(route, read_json(body, DIALECTS.of(path), route).facts, 10, context)


@pytest.mark.parametrize(
    ("path", "fields", "answer"),
    [
        (CHAT, {"max_tokens": 50}, 50),
        (CHAT, {"max_completion_tokens": 50}, 50),
        (CHAT, {"max_tokens": 1, "max_completion_tokens": 50}, 50),
        (CHAT, {"max_tokens": 1, "n_predict": 50}, 50),
        (CHAT, {"max_tokens": 1, "n_predict": -1}, None),
        (CHAT, {"max_tokens": 1, "MAX_TOKENS": 50}, 50),
        (CHAT, {"max_tokens": 50, "n": 4}, 200),
        (CHAT, {"max_tokens": 50, "n_cmpl": 4}, 200),
        (CHAT, {"max_tokens": 0}, None),
        (CHAT, {"max_tokens": None}, None),
        (CHAT, {}, None),
        (COMPLETIONS, {"max_tokens": 50, "prompt": "a", "n": 2, "best_of": 3}, 150),
        (COMPLETIONS, {"max_tokens": 50, "prompt": ["a", "b, c"], "n": 2}, 200),
        (COMPLETIONS, {"max_tokens": 50, "prompt": [1, 2, 3]}, 50),
        (COMPLETIONS, {"max_tokens": 50, "prompt": [[1, 2], [3]]}, 100),
        (COMPLETIONS, {"max_tokens": 1, "prompt": ["a"] * 20_000}, 20_000),
        (COMPLETIONS, {"max_tokens": 1, "prompt": [1] * 20_000}, 1),
        ("/v1/responses", {"max_output_tokens": 50, "input": "a"}, 50),
        ("/v1/messages", {"max_tokens": 50}, 50),
        ("/api/chat", {"options": {"num_predict": 50}}, 50),
        ("/api/generate", {"options": {"num_predict": -1}}, None),
        ("/api/generate", {"options": {"num_predict": -2}}, None),
        ("/api/generate", {"options": {"num_predict": 0}}, None),
        ("/api/generate", {"max_tokens": 5, "options": {"num_predict": -1}}, None),
        ("/api/chat", {"options": {"num_predict": 1}, "Options": {"num_predict": 50}}, 50),
        ("/api/generate", {"OPTIONS": {"num_predict": 50}}, 50),
    ],
)
def test_the_answers_length_is_the_most_that_a_server_makes_of_it(
    path: str, fields: dict[str, Any], answer: int | None
) -> None:
    found = claim(path, **fields)
    assert found.answer == answer
    assert found.most >= (10 + answer if answer else 4096)


@pytest.mark.parametrize(
    ("n", "answers"),
    [("4", 4), (" 4 ", 4), (1.5, 2), (1e300, 65_536), ("many", 1), ([], 1), (-1, 1)],
)
def test_a_count_of_answers_is_read_as_the_most_lenient_server_does(n: Any, answers: int) -> None:
    assert claim(CHAT, max_tokens=1, n=n).answer == answers


def test_without_a_limit_every_answer_may_fill_the_context() -> None:
    assert claim(CHAT, messages=[]).most == pytest.approx(4096, abs=70)
    assert claim(CHAT, n=3, messages=[]).most == pytest.approx(3 * 4086, abs=80)
    assert claim(CHAT, context=None).most >= ASSUMED_CONTEXT_TOKENS
    assert claim("/api/chat", options={"num_ctx": 50_000}).most >= 50_000


def test_a_dense_prompt_counts_a_token_a_byte_at_most() -> None:
    digits = [{"role": "user", "content": "7" * 1000}]
    assert 1000 <= claim(CHAT, max_tokens=1, messages=digits).most < 1150
    assert claim(CHAT, max_tokens=1, messages=digits, context=500).most == 501


def test_embeddings_count_their_text_and_counting_counts_nothing() -> None:
    texts = ["some text"] * 100
    found = claim("/v1/embeddings", input=texts)
    assert 200 < found.least < found.most < 1500
    assert claim("/v1/messages/count_tokens", messages=texts) == TokenClaim(0, 0, 0)


@pytest.mark.parametrize(("path", "most"), [(CHAT, UNBOUNDED), ("/v1/embeddings", 2 << 20)])
def test_a_long_body_counts_by_its_size(path: str, most: int) -> None:
    route = DIALECTS.find_route("POST", path)
    assert route is not None
    facts = BodyFacts("m", size_bytes=2 << 20)
    found = token_claim(route, facts, 0, 1 << 20)
    assert (found.prompt, found.most) == (1 << 19, most)


class Box(ServingNode):
    kind = "node"

    def __init__(self, *contexts: int | None) -> None:
        self.name = "box"
        self.status = NodeStatus(
            tuple(ModelStatus("m", "u", context_tokens=context) for context in contexts)
        )

    @property
    def ready(self) -> bool:
        return True

    def open(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def test_the_largest_context_is_known_only_if_all_tell() -> None:
    assert largest_context([Box(512), Box(4096)], ("m",)) == 4096
    assert largest_context([Box(512), Box(None)], ("m",)) is None
    assert largest_context([Box(512)], ("other",)) is None
