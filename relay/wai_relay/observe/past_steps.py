"""Spread what a request of the past took over the steps of an hour. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

from wai_relay.contracts.records import PastRequest

HOUR_S: Final = 3600.0


class Share(NamedTuple):
    """The steps in which the answer came, the first and the last, and its rate in each."""

    first: int
    last: int
    tokens_per_s: float


def share_of(one: PastRequest, now: float, step_s: float, steps: int) -> Share | None:
    """Return the share of `one` in `steps` steps of `step_s` seconds, the last of which ends `now`.

    The tokens of an answer are taken to have come evenly, from its first content to its end. None:
    it ended over an hour ago, or after `now` because the clock was moved.
    """
    ended_ago = now - (one.began_at + one.duration_ms / 1000.0)
    if not 0 <= ended_ago < HOUR_S:
        return None
    took_s = (one.duration_ms - (one.ttft_ms or 0.0)) / 1000.0
    last = steps - 1 - int(ended_ago // step_s)
    first = max(steps - 1 - int((ended_ago + max(took_s, 0.0)) // step_s), 0)
    return Share(first, last, one.completion_tokens / (last - first + 1) / step_s)
