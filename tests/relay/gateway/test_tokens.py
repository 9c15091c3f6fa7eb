"""Estimates follow what upstreams report, within bounds."""

from __future__ import annotations

from wai_relay.gateway.tokens import (
    LEAST_TEXT_BYTES,
    MAX_MODELS,
    MOST_BYTES_PER_TOKEN,
    MOST_TEMPLATE_TOKENS,
    TokenEstimator,
)


def test_estimate_moves_towards_what_was_reported() -> None:
    estimator = TokenEstimator()
    assert estimator.estimate("m", 4000) == 1000
    for _ in range(100):
        estimator.observe("m", 4000, 2000)
    assert 1990 <= estimator.estimate("m", 4000) <= 2000
    assert estimator.estimate("other", 4000) == 1000


def test_absurd_reports_do_not_run_away() -> None:
    estimator = TokenEstimator()
    for _ in range(1000):
        estimator.observe("m", 1_000_000, 1)
        estimator.observe("m", 10_000, 0)
        estimator.observe("m", 10, 5)
    assert estimator.estimate("m", 12_000) >= 12_000 / MOST_BYTES_PER_TOKEN


def test_models_remembered_are_bounded() -> None:
    estimator = TokenEstimator()
    for number in range(2 * MAX_MODELS):
        estimator.observe(f"m{number}", 4000, 2000)
        estimator.observe(f"m{number}", 40, 30)
    assert len(estimator._bytes_per_token) == MAX_MODELS
    assert len(estimator._template_tokens) == MAX_MODELS


def test_the_template_is_learned_from_short_prompts_and_added_to_them_alone() -> None:
    estimator = TokenEstimator()
    assert estimator.template("m", 40) == 0
    estimator.observe("m", 40, 40)
    assert estimator.template("m", 40) == 30
    estimator.observe("m", 40, 20)
    assert 20 < estimator.template("m", 40) < 30
    estimator.observe("m", 40, 10_000)
    assert estimator.template("m", 40) == MOST_TEMPLATE_TOKENS
    assert estimator.template("m", LEAST_TEXT_BYTES) == 0
    assert estimator.estimate("m", 40) == 10
