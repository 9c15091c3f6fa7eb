"""What the relay did over the last hour, step by step: for the overview's figures and its chart.

A `Recorder` that counts what passes and hands it on, and a sample of what runs now every `STEP_S`.
It is in memory alone. After a restart it begins with what `usage` has of the hour before.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from wai_api.feed import PulseHistory, PulseView
from wai_relay.contracts.histogram import bin_of, quantile
from wai_relay.contracts.records import PastRequest, Recorder, RequestRecord

from .live import LiveRequests
from .past_steps import share_of

STEP_S: Final = 2.0  # quick enough for "now"; an hour of it is 1800 points, as wide as a screen
STEPS: Final = 1800
NOW_STEPS: Final = 3  # "now" is the mean of so many: one step alone flickers
MINUTE_S: Final = 60.0
MINUTES: Final = 60
MAX_PAST: Final = 5000
"""Requests of the time before a restart that are taken in; of more, the latest count. A start took
a second longer with 20,000 on a busy machine."""

CallLater = Callable[[float, Callable[[], None]], Any]


class _Minute:
    """What ended in one minute."""

    __slots__ = ("errors", "requests", "ttft_bins")

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.ttft_bins: Counter[int] = Counter()


class Pulse:
    """See the module. `start` it; `close` it; belongs to one loop."""

    def __init__(
        self,
        onward: Recorder,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        call_later: CallLater | None = None,
    ) -> None:
        self._live = LiveRequests()
        self._onward = onward
        self._clock = clock
        self._wall_clock = wall_clock
        self._call_later = call_later
        self._timer: Any = None
        self._finished_tokens = 0
        self._seen_tokens = 0
        self._rates: deque[float] = deque([0.0] * STEPS, maxlen=STEPS)
        self._running: deque[int] = deque([0] * STEPS, maxlen=STEPS)
        self._minutes: deque[_Minute] = deque([_Minute()], maxlen=MINUTES)
        self._minute_began = clock()
        self.now = PulseView(
            at=wall_clock(),
            tokens_per_s=0.0,
            running=0,
            queued=0,
            requests_hour=0,
            errors_hour=0,
            tokens_hour=0,
            ttft_p50_ms=None,
            ttft_p99_ms=None,
        )

    def finish(self, record: RequestRecord) -> None:
        """See `Recorder`."""
        _count(self._minutes[-1], record)
        self._finished_tokens += record.tokens.completion
        self._onward.finish(record)

    def restore(self, past: Iterable[PastRequest]) -> None:
        """Begin with these requests of the last hour, before `start`."""
        now = self._wall_clock()
        rates = [0.0] * STEPS
        minutes = [_Minute() for _ in range(MINUTES)]
        for one in past:
            share = share_of(one, now, STEP_S, STEPS)
            if share is None:
                continue
            ended_ago = now - (one.began_at + one.duration_ms / 1000.0)
            _count(minutes[-1 - int(ended_ago // MINUTE_S)], one)
            for step in range(share.first, share.last + 1):
                rates[step] += share.tokens_per_s
        self._rates = deque(rates, maxlen=STEPS)
        self._minutes = deque(minutes, maxlen=MINUTES)
        self.now = self._view(0)

    def start(self, live: LiveRequests) -> None:
        """Begin to sample `live`."""
        self._live = live
        call_later = self._call_later or asyncio.get_running_loop().call_later
        self._timer = call_later(STEP_S, self._on_timer)

    def close(self) -> None:
        """Sample no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def history(self) -> PulseHistory:
        """The last hour."""
        return PulseHistory(
            step_s=STEP_S,
            until=self.now.at,
            tokens_per_s=[round(rate, 1) for rate in self._rates],
            running=list(self._running),
        )

    def sample(self) -> None:
        """Take one step."""
        now = self._clock()
        while now - self._minute_began >= MINUTE_S:
            self._minutes.append(_Minute())
            self._minute_began += MINUTE_S
        views = self._live.views(now)
        # A request that ends keeps its tokens; one that was retried may lose some, hence max.
        tokens = self._finished_tokens + sum(view.completion_tokens for view in views)
        self._rates.append(max(0, tokens - self._seen_tokens) / STEP_S)
        self._seen_tokens = tokens
        queued = sum(view.state == "queued" for view in views)
        self._running.append(len(views) - queued)
        self.now = self._view(queued)

    def ttft_bins(self) -> Counter[int]:
        """How many of the last hour's times to first token fell into each bin."""
        bins: Counter[int] = Counter()
        for minute in self._minutes:
            bins.update(minute.ttft_bins)
        return bins

    def _view(self, queued: int) -> PulseView:
        bins = self.ttft_bins()
        recent = [self._rates[-step] for step in range(1, NOW_STEPS + 1)]
        return PulseView(
            at=round(self._wall_clock(), 1),
            tokens_per_s=round(sum(recent) / NOW_STEPS, 1),
            running=self._running[-1],
            queued=queued,
            requests_hour=sum(minute.requests for minute in self._minutes),
            errors_hour=sum(minute.errors for minute in self._minutes),
            tokens_hour=round(sum(self._rates) * STEP_S),
            ttft_p50_ms=quantile(bins, 0.5),
            ttft_p99_ms=quantile(bins, 0.99),
        )

    def _on_timer(self) -> None:
        self.sample()
        self.start(self._live)


def _count(minute: _Minute, request: RequestRecord | PastRequest) -> None:
    # Lists and refusals are not what people mean by a request; one that no node could take is.
    if request.attempts or (request.status >= 500 and not request.cancelled):
        minute.requests += 1
        minute.errors += request.failed
        if request.ttft_ms is not None:
            minute.ttft_bins[bin_of(request.ttft_ms)] += 1


def summed(own: PulseView, others: Iterable[PulseView], bins: Mapping[int, int]) -> PulseView:
    """The figures of several relays together; `bins`: all their times to first token."""
    views = [own, *others]
    counted = Counter(bins)
    return PulseView(
        at=own.at,
        tokens_per_s=round(sum(view.tokens_per_s for view in views), 1),
        running=sum(view.running for view in views),
        queued=sum(view.queued for view in views),
        requests_hour=sum(view.requests_hour for view in views),
        errors_hour=sum(view.errors_hour for view in views),
        tokens_hour=sum(view.tokens_hour for view in views),
        ttft_p50_ms=quantile(counted, 0.5),
        ttft_p99_ms=quantile(counted, 0.99),
    )


def summed_history(own: PulseHistory, others: Iterable[PulseHistory]) -> PulseHistory:
    """The last hour of several relays together, which sample with the same step."""
    rates, running = list(own.tokens_per_s), list(own.running)
    for other in others:
        for back in range(1, min(len(rates), len(other.tokens_per_s)) + 1):
            rates[-back] = round(rates[-back] + other.tokens_per_s[-back], 1)
        for back in range(1, min(len(running), len(other.running)) + 1):
            running[-back] += other.running[-back]
    return PulseHistory(step_s=own.step_s, until=own.until, tokens_per_s=rates, running=running)
