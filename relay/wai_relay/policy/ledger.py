"""What one model on one node is busy with: our own claims, counted at once, and what the node says.

A claim is made in the moment a request is sent there, long before the node can report it, so that
two requests of the same millisecond don't take the same slot. The node's figures heal what we
miscount: busy slots that are not ours belong to somebody else on that box and are added; claims
that the node, well after they were made, still does not see, are dropped, so that a leaked count
can't flood one node and starve another. Pure: `now` is monotonic seconds.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from wai_protocol.status import ModelStatus

# A node's figures may be this old when they arrive: its poll of the upstream, and the way.
STATUS_LAG_S: Final = 0.5
# A claim that the node's figures contradict for this long is a leak. Longer than any poll,
# shorter than people's patience with an idle node that gets no work.
LEAK_GRACE_S: Final = 10.0
# Where an upstream doesn't report its slots, nothing but time can heal a leak; nothing takes
# longer.
MAX_CLAIM_S: Final = 3600.0
# A prompt is taken to be read after this many times its expected time: rates are no better known.
OVERDUE: Final = 1.5


class Claim:
    """One request's hold on a slot. Made by `Ledger.claim`, ended by `Ledger.release`."""

    __slots__ = (
        *(
            "at",
            "dropped",
            "expected_s",
            "fresh_tokens",
            "output_tokens",
            "overdue_at",
            "read_from",
        ),
        *("started", "streams", "work_since", "work_then"),
    )

    def __init__(
        self, fresh_tokens: float, output_tokens: float, now: float, *, streams: bool
    ) -> None:
        self.at = now
        self.fresh_tokens = fresh_tokens
        self.output_tokens = output_tokens
        self.read_from = now  # when the node came to read this prompt, as far as we can tell
        self.overdue_at = 0.0  # when its first token should have come at the latest
        self.streams = streams  # its first token is told
        self.started = False  # the first token was seen
        self.dropped = False
        self.expected_s = 0.0  # until its first token, if a slot is free; 0.0: not known
        # Since when `Ledger.together` counts for it, and the ledger's sum at that time.
        self.work_since = now
        self.work_then = 0.0


class Ledger:
    """The load of one model on one node."""

    __slots__ = (
        "_advancing",
        "_claims",
        "_contradicted_at",
        "_foreign",
        "_freed",
        "_output",
        "_reading",
        "_work",
        "_worked_until",
        "ended_at",
        "silent",
        "status",
    )

    def __init__(self, status: ModelStatus) -> None:
        self.status = status
        self._claims: dict[Claim, None] = {}  # in the order in which they were made
        self._reading: dict[Claim, None] = {}  # those without a first token yet, likewise
        self.silent: dict[Claim, None] = {}  # those whose first token is overdue, in that order
        self._output = 0.0  # expected answer tokens of all claims together
        self._foreign = 0
        self._freed: deque[float] = deque(maxlen=64)  # more than any node frees within the lag
        self._contradicted_at: float | None = None
        self._advancing = 0  # claims whose answer has begun
        # The number of answers in progress, summed over time: for their mean over any time.
        self._work = 0.0
        self._worked_until = 0.0
        self.ended_at = -math.inf  # when a claim with an answer to write ended last

    # -- our own requests
    def claim(
        self, fresh_tokens: float, output_tokens: float, now: float, *, streams: bool = False
    ) -> Claim:
        """Take a slot for a request that must read `fresh_tokens` and is expected to write
        `output_tokens`. `streams`: its first token will be told."""
        self._work_until(now)
        claim = Claim(fresh_tokens, output_tokens, now, streams=streams)
        claim.work_then = self._work
        self._claims[claim] = None
        self._reading[claim] = None
        self._output += output_tokens
        return claim

    def delay(self, claim: Claim, by_s: float) -> None:
        """The prompt of `claim` can't be read before that: the model is loaded first."""
        claim.read_from += by_s
        claim.expected_s += by_s

    def first_token(self, claim: Claim, now: float) -> float | None:
        """The answer began. Returns the seconds that reading this prompt took, None if it had begun
        before. Prompts are taken to be read one after the other."""
        if claim.started:
            return None
        self._work_until(now)
        claim.started = True
        claim.work_since, claim.work_then = now, self._work
        if not claim.dropped:
            self._advancing += 1
        took_s = now - claim.read_from
        if self.silent:  # one that was asked later shows that the node itself does not hang
            for other in [c for c in self.silent if c.at <= claim.at]:
                del self.silent[other]
        self._stop_reading(claim, now)
        return took_s

    def release(self, claim: Claim, now: float) -> None:
        """The request is over, however it ended. Harmless when repeated."""
        if claim in self._claims:
            self._drop(claim, now)
            self._freed.append(now)
            if claim.output_tokens:
                self.ended_at = now

    # -- what the node says
    def report(self, status: ModelStatus, now: float) -> None:
        """The node's figures arrived."""
        self.status = status
        self._work_until(now)
        freed = sum(1 for at in self._freed if now - at <= STATUS_LAG_S)
        if status.slots_total is None:
            # What waits there waits among our own. An upstream that tells nothing has its node's
            # count of our own requests here, which contradicts nothing.
            work = status.slots_busy + status.queued
            self._foreign = max(0, work - len(self._claims) - freed)
            return
        self._foreign = max(0, status.slots_busy - len(self._claims) - freed)
        settled = sum(1 for claim in self._claims if now - claim.at > LEAK_GRACE_S)
        if status.slots_busy + status.queued >= settled:
            self._contradicted_at = None
        elif self._contradicted_at is None:
            self._contradicted_at = now

    def filled(self) -> None:
        """The node said that others have taken every slot that is not ours; until its next figures,
        which say how many."""
        slots = self.status.slots_total or 0
        self._foreign = max(self._foreign, slots - len(self._claims))

    def heal(self, now: float) -> bool:
        """Drop the claims that the node has long contradicted; True if there were any."""
        if self._contradicted_at is not None and now - self._contradicted_at > LEAK_GRACE_S:
            settled = [claim for claim in self._claims if now - claim.at > LEAK_GRACE_S]
            excess = len(settled) - self.status.slots_busy - self.status.queued
            self._contradicted_at = None
            for claim in settled[: max(excess, 0)]:  # the oldest are the likeliest to be leaks
                self._drop(claim, now)
                claim.dropped = True
            return excess > 0
        oldest = next(iter(self._claims), None)
        if oldest is not None and now - oldest.at > MAX_CLAIM_S and self.status.slots_total is None:
            self._drop(oldest, now)
            oldest.dropped = True
            return True
        return False

    @property
    def suspect(self) -> bool:
        """Whether the node's figures contradict ours, so that `heal` should be asked."""
        return self._contradicted_at is not None or self.status.slots_total is None

    # -- figures for the score
    def load(self, prefill_tps: float, now: float) -> tuple[int, int, float, float]:
        """Together, which costs half: `busy`; how many of our prompts are still to be read;
        `prefill_ahead`; the expected length of an answer in progress, 0.0 without any."""
        claims = len(self._claims)
        if not claims:
            return self._foreign, 0, 0.0, 0.0
        reading = len(self._reading)  # those that are just found overdue are still in the way
        ahead = self.prefill_ahead(prefill_tps, now) if reading else 0.0
        return claims + self._foreign, reading, ahead, self._output / claims

    @property
    def writes(self) -> bool:
        """Whether an answer is to be written for one of our requests there."""
        return self._output >= 1.0

    @property
    def claims(self) -> int:
        """Our own requests there."""
        return len(self._claims)

    @property
    def busy(self) -> int:
        """Slots in use: our claims, and what others on that box hold."""
        return len(self._claims) + self._foreign

    @property
    def advancing(self) -> int:
        """Answers in progress there, those of others included."""
        return self._advancing + self._foreign

    @property
    def foreign(self) -> int:
        """Requests of others on that box."""
        return self._foreign

    def together(self, claim: Claim, now: float) -> float:
        """How many answers were in progress on average, from this claim's first content on (from
        its start, where it showed none) until now, its own included."""
        self._work_until(now)
        took_s = now - claim.work_since
        return max((self._work - claim.work_then) / took_s, 1.0) if took_s > 0.0 else 1.0

    def _work_until(self, now: float) -> None:
        in_progress = len(self._claims) - len(self._reading) + self._foreign
        self._work += in_progress * (now - self._worked_until)
        self._worked_until = now

    def silence_s(self, now: float) -> float:
        """For how long an answer is overdue that should be seen to begin; 0.0 if none is."""
        for claim in self.silent:
            return now - claim.overdue_at
        return 0.0

    def prefill_ahead(self, prefill_tps: float, now: float) -> float:
        """Prompt tokens that are still to be read for our claims.

        A prompt that should long be read counts as read: an answer that is not streamed shows no
        first token.
        """
        first = next(iter(self._reading), None)
        while first is not None:
            read_at = first.read_from + first.fresh_tokens / prefill_tps * OVERDUE
            if now <= read_at:
                break
            if first.streams:
                first.overdue_at = read_at
                self.silent[first] = None
            self._stop_reading(first, read_at)
            first = next(iter(self._reading), None)
        if first is None:
            return 0.0
        total = 0.0
        for claim in self._reading:
            total += claim.fresh_tokens
        read_s = now - first.read_from
        return total - min(first.fresh_tokens, read_s * prefill_tps) if read_s > 0.0 else total

    def _drop(self, claim: Claim, now: float) -> None:
        self._work_until(now)
        del self._claims[claim]
        self._advancing -= claim.started
        self._output -= claim.output_tokens
        self.silent.pop(claim, None)
        self._stop_reading(claim, now)

    def _stop_reading(self, claim: Claim, now: float) -> None:
        if claim in self._reading:
            was_first = next(iter(self._reading)) is claim
            del self._reading[claim]
            if was_first and (following := next(iter(self._reading), None)) is not None:
                following.read_from = now
