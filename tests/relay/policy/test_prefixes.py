"""Warm prefixes: a bounded guess that is corrected by what upstreams report."""

from __future__ import annotations

from wai_relay.policy.prefixes import MAX_NODE_BLOCKS, WarmPrefixes


def test_only_the_common_beginning_counts_as_warm() -> None:
    warm = WarmPrefixes()
    warm.remember((1, 2, 3, 4), 400)
    assert warm.warm_tokens((1, 2, 3, 4), 400) == 400
    assert warm.warm_tokens((1, 2, 9, 4), 400) == 200
    assert warm.warm_tokens((9, 2, 3, 4), 400) == 0
    assert warm.warm_tokens((), 400) == 0


def test_the_longest_unused_is_forgotten_from_its_end() -> None:
    warm = WarmPrefixes(capacity_tokens=600)
    warm.remember((1, 2, 3), 300)
    warm.remember((11, 12, 13), 300)
    warm.remember((21,), 100)
    assert warm.warm_tokens((1, 2, 3), 300) == 200
    assert warm.warm_tokens((11, 12, 13), 300) == 300


def test_a_node_that_keeps_less_than_it_says_is_believed_less() -> None:
    warm = WarmPrefixes(capacity_tokens=1000)
    warm.remember(tuple(range(10)), 1000)
    for _ in range(10):
        warm.correct(1000, 0)
    assert len(warm) < 5


def test_no_prompts_fill_the_relays_memory() -> None:
    warm = WarmPrefixes(capacity_tokens=1 << 40)
    for start in range(0, 40_000, 200):
        warm.remember(tuple(range(start, start + 200)), 200)
    assert len(warm) == MAX_NODE_BLOCKS
