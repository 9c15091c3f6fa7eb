"""How many answers an upstream that does not tell it works on at once, learned from its answers.

A server with N places that is given more lets the others wait until one ends: then a first content
comes right after another answer's end, and long after the prompt should have been read. A server
that batches answers all at once. So the limit grows while every answer begins without such a wait:
by one for each until it was found once (which doubles it in the time of one prompt), later by
careful steps with pauses that get longer. It falls to the number that was seen to advance together.
A late beginning is judged a moment later, because the news of an end and of the beginning that it
made room for may overtake each other. Answers that are not streamed show no beginning: there the
work done at once, compared with that of one alone, tells the same more roughly.

Pure: it is told the figures and the time.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from .pace import Pace

# An end that is told this much later may have been before a beginning: they come by two sockets.
SETTLE_S: Final = 0.02
# What an upstream is taken to do at once until it has shown more or less: llama-server's and
# Ollama's usual defaults.
FIRST_LIMIT: Final = 4
MOST: Final = 1024  # vLLM's own largest default of sequences is a quarter of it
# A prompt that takes this much longer than expected was waited with, unless it is a moment.
LATE_RATIO: Final = 2.0
LATE_S: Final = 0.05
# It waited for the end before it if it came after that as soon as a prompt is read, or this much
# later.
FOLLOWED_RATIO: Final = 1.5
# So many in a row must have waited: ends and beginnings coincide by chance too.
IN_ROW: Final = 2
# A step up that failed is tried again after this, then twice as long each time.
FIRST_PAUSE_S: Final = 2.0
LONGEST_PAUSE_S: Final = 60.0
GROWTH: Final = 8  # a step up is an eighth of the limit, and one at least
# The limit grows no further once the server does this share of all that it could ever do at once.
SATURATED: Final = 0.9
# ... and never below this for that reason: how answers slow each other is known only roughly.
LEAST_USEFUL: Final = 16
PEAK_FADE: Final = 1 / 64  # the most that advanced together is forgotten over some sixty answers
# Whole answers: with at least this share of the ideal gain the limit grows, with less it falls.
GOOD_GAIN: Final = 0.6
POOR_GAIN: Final = 0.35
QUICKEST_FADE: Final = 1.001  # the quickest answer is believed a little less with each further one
FIRST_FADE: Final = 1.002  # the same for the quickest first content


class Beginning:
    """An answer's first content. `asked_at`: when its request was sent. `advancing`: how many
    answers were in progress then, this one included, and `held` how many requests; `expected_s`:
    how long reading the prompt takes, 0.0 if that is not known; `since_end_s`: how long ago another
    answer had ended. `late`: it waited for that end, or so it seems while it is not judged."""

    __slots__ = (*("advancing", "asked_at", "at", "expected_s", "held", "late", "since_end_s"),)

    def __init__(
        self,
        at: float,
        asked_at: float,
        advancing: int,
        held: int,
        expected_s: float,
        since_end_s: float,
    ) -> None:
        self.at = at
        self.asked_at = asked_at
        self.advancing = advancing
        self.held = held
        self.expected_s = expected_s
        self.since_end_s = since_end_s
        self.late = False

    @property
    def shows_reading(self) -> bool:
        """Whether its wait was for its prompt to be read, surely: no other answer ended meanwhile,
        or it was not longer than expected."""
        waited_s = self.at - self.asked_at
        return self.since_end_s > waited_s or waited_s <= self.expected_s


class Concurrency:
    """The limit of one model on one node."""

    __slots__ = (
        *("_found", "_late", "_pause_s", "_peak", "_probing", "_quickest_first_s"),
        *("_quickest_s", "_quickest_token_s", "_raised_at", "_retry_at", "_streams"),
        *("_unjudged", "limit", "unsure"),
    )

    def __init__(self) -> None:
        self.limit = FIRST_LIMIT
        self.unsure = 0  # how many of these are only a try
        self._unjudged: deque[Beginning] = deque()
        self._found = False  # it was too high once
        self._late = 0  # answers in a row that waited for another's end
        self._streams = False  # beginnings are seen
        self._peak = 0.0
        self._probing = False  # the last step up was not confirmed yet
        self._pause_s = 0.0
        self._retry_at = -math.inf
        self._raised_at = -math.inf
        self._quickest_first_s = math.inf
        self._quickest_s = math.inf
        self._quickest_token_s = math.inf

    def began(self, beginning: Beginning, pace: Pace) -> None:
        """An answer's first content came."""
        self._streams = True
        waited_s = beginning.at - beginning.asked_at
        self._quickest_first_s = min(self._quickest_first_s * FIRST_FADE, waited_s)
        expected_s = max(beginning.expected_s, self._quickest_first_s)
        beginning.late = waited_s > LATE_RATIO * expected_s + LATE_S
        beginning.expected_s = expected_s
        if beginning.late:
            self._unjudged.append(beginning)
        else:
            self._judge(beginning, beginning.at, pace)

    def ended(self, now: float, own: Beginning | None) -> None:
        """An answer ended, whose `own` beginning this was. Another one that began just before may
        have waited for this."""
        marked = False
        for beginning in self._unjudged:
            if beginning is own or now - beginning.at >= SETTLE_S:
                continue
            beginning.advancing = max(beginning.advancing - 1, 1)
            if beginning.since_end_s > 0.0 and not marked:
                beginning.since_end_s = 0.0
                marked = True

    def judge(self, now: float, pace: Pace) -> None:
        """Learn from the beginnings that were a moment ago."""
        unjudged = self._unjudged
        while unjudged and now - unjudged[0].at >= SETTLE_S:
            self._judge(unjudged.popleft(), now, pace)

    def ended_whole(self, now: float, *, together: float, took_s: float, tokens: float) -> None:
        """An answer that showed no beginning took `took_s` for `tokens` of work, beside others:
        `together` requests were in progress on average. Where some answers show their beginning,
        those tell better what is too much: embeddings only take turns at reading, for example."""
        if took_s <= 0.0 or tokens <= 0.0:
            return
        self._quickest_s = min(self._quickest_s * QUICKEST_FADE, took_s)
        self._quickest_token_s = min(self._quickest_token_s * QUICKEST_FADE, took_s / tokens)
        alone_s = max(self._quickest_s, self._quickest_token_s * tokens)
        gain = together * alone_s / took_s
        if gain >= GOOD_GAIN * together:
            if together > self.limit - 0.5:
                self._raise(now, None)
        elif gain < POOR_GAIN * together and not self._streams:
            self._lower(max(1, min(self.limit, round(together)) - 1), now)

    def _judge(self, beginning: Beginning, now: float, pace: Pace) -> None:
        self._peak = max(float(beginning.advancing), self._peak * (1 - PEAK_FADE))
        followed = beginning.since_end_s <= FOLLOWED_RATIO * beginning.expected_s + SETTLE_S
        beginning.late = beginning.late and followed
        if beginning.late:
            self._late += 1
            if self._probing or self._late >= IN_ROW:
                self._lower(max(1, math.ceil(self._peak - 0.5)), now)
            return
        self._late = 0
        asked_since = not self._found or beginning.asked_at >= self._raised_at
        if beginning.held >= self.limit and asked_since:
            self._raise(now, pace)
        if self.limit > LEAST_USEFUL and pace.alone_s:
            useful = _useful(pace)
            if useful < self.limit:
                self.limit, self.unsure = useful, 0

    def _raise(self, now: float, pace: Pace | None) -> None:
        if self._probing:
            self._probing = False
            self._pause_s = 0.0
            self.unsure = 0
        if not self._found:
            wanted = self.limit + 1
        elif now < self._retry_at:
            return
        else:
            wanted = self.limit + max(1, self.limit // GROWTH)
            self._probing = True
        self._raised_at = now
        if pace is not None and pace.alone_s:
            wanted = min(wanted, max(self.limit, _useful(pace)))
        wanted = min(wanted, MOST)
        if self._probing:
            self.unsure = wanted - self.limit
        self.limit = wanted

    def _lower(self, limit: int, now: float) -> None:
        self._late = 0
        if limit >= self.limit:
            return
        self.limit = limit
        self.unsure = 0
        self._pause_s = min(max(self._pause_s * 2, FIRST_PAUSE_S), LONGEST_PAUSE_S)
        self._found = True
        self._probing = False
        self._retry_at = now + self._pause_s


def _useful(pace: Pace) -> int:
    """With how many at once a server does `SATURATED` of all that it could ever do at once."""
    useful = SATURATED * (pace.alone_s - pace.each_s) / ((1 - SATURATED) * pace.each_s)
    return max(int(useful), LEAST_USEFUL)
