"""What a request that is over has shown of its node, and of how long answers are. Pure."""

from __future__ import annotations

from typing import Final

from wai_relay.contracts.records import is_pace

from .rates import OutputLengths
from .tickets import Placement, Result, Tokens

# A reading shorter than this says more about the way there than about the node's speed.
LEAST_SAMPLE_TOKENS: Final = 64
# Fewer tokens than this arrive together, and seem to take no time.
LEAST_SAMPLE_ANSWER: Final = 8
LEAST_SAMPLE_S: Final = 0.001  # of a reading that took no time beside others


def learn(
    placement: Placement, now: float, result: Result, tokens: Tokens, lengths: OutputLengths
) -> bool:
    """Learn what a request that ends now has shown. Its claim is still held. Return whether the
    node's speeds may have changed."""
    lane, demand = placement.lane, placement.demand
    cached = tokens.cached if tokens.cached is not None else placement.warm_tokens
    fresh = tokens.prompt - cached
    if tokens.cached is not None:
        lane.warm.correct(placement.warm_tokens, tokens.cached)
    if result is Result.SERVED and tokens.completion:
        lengths.add(demand.model, placement.key_id, tokens.completion)
    if placement.first_at is None:
        if result is Result.SERVED:
            return _learn_whole(placement, now, fresh, tokens)
        return False
    beginning = placement.beginning
    read = fresh >= LEAST_SAMPLE_TOKENS and not placement.load_s
    if read and (beginning is None or beginning.shows_reading):
        lane.prefill.add(fresh, placement.read_s)
    if tokens.completion >= LEAST_SAMPLE_ANSWER:
        written, took_s = tokens.completion - 1, now - placement.first_at
        others = lane.ledger.together(placement.claim, now) - 1.0
        if is_pace(written, took_s):
            lane.decode.add(written, took_s)
            lane.pace.add(others, took_s / written)
    return True


def _learn_whole(placement: Placement, now: float, fresh: float, tokens: Tokens) -> bool:
    """The same for an answer that came in one piece: it shows no first token."""
    lane, measured = placement.lane, False
    if not (placement.demand.generates or placement.load_s) and fresh >= LEAST_SAMPLE_TOKENS:
        took_s = lane.ledger.first_token(placement.claim, now)
        if took_s is not None:
            # Those that a server works on at once end at once: all but the first in no time.
            lane.prefill.add(fresh, max(took_s - lane.rtt_s, LEAST_SAMPLE_S))
            measured = True
    if lane.learns_limit:
        together = (placement.placed_beside + lane.ledger.busy) / 2
        took_s = now - placement.placed_at
        work = tokens.completion if placement.demand.generates else fresh
        lane.concurrency.ended_whole(now, together=together, took_s=took_s, tokens=work)
    return measured
