"""Estimates follow what upstreams report, within bounds."""

from __future__ import annotations

from wai_relay.gateway.prompt_size import PromptSize
from wai_relay.gateway.tokens import (
    LEAST_TEXT_BYTES,
    MAX_MODELS,
    MOST_BYTES_PER_TOKEN,
    MOST_TEMPLATE_TOKENS,
    TokenEstimator,
)


def text(size: int) -> PromptSize:
    """A prompt of plain text."""
    return PromptSize(text_bytes=size)


def test_estimate_moves_towards_what_was_reported() -> None:
    estimator = TokenEstimator()
    assert estimator.estimate("m", text(4000)) == 1000
    for _ in range(100):
        estimator.observe("m", text(4000), 2000)
    assert 1990 <= estimator.estimate("m", text(4000)) <= 2000
    assert estimator.estimate("other", text(4000)) == 1000


def test_absurd_reports_do_not_run_away() -> None:
    estimator = TokenEstimator()
    for _ in range(1000):
        estimator.observe("m", text(1_000_000), 1)
        estimator.observe("m", text(10_000), 0)
        estimator.observe("m", text(10), 5)
    assert estimator.estimate("m", text(12_000)) >= 12_000 / MOST_BYTES_PER_TOKEN


def test_models_remembered_are_bounded() -> None:
    estimator = TokenEstimator()
    for number in range(2 * MAX_MODELS):
        estimator.observe(f"m{number}", text(4000), 2000)
        estimator.observe(f"m{number}", text(40), 30)
    assert len(estimator._bytes_per_token) == MAX_MODELS
    assert len(estimator._template_tokens) == MAX_MODELS


def test_the_template_is_learned_from_short_prompts_and_added_to_them_alone() -> None:
    estimator = TokenEstimator()
    assert estimator.template("m", text(40)) == 0
    estimator.observe("m", text(40), 40)
    assert estimator.template("m", text(40)) == 30
    estimator.observe("m", text(40), 20)
    assert 20 < estimator.template("m", text(40)) < 30
    estimator.observe("m", text(40), 10_000)
    assert estimator.template("m", text(40)) == MOST_TEMPLATE_TOKENS
    assert estimator.template("m", text(LEAST_TEXT_BYTES)) == 0
    assert estimator.estimate("m", text(40)) == 10
