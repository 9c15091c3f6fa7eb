"""A simulated node: slots, chunked prefill beside decoding, and a cache of prompt prefixes.

One GPU step reads a chunk of the first prompt in line and writes one token for every answer in
progress, as llama-server and vLLM do: so prompts slow down answers and answers slow down prompts.
Between two events all rates are constant, so that a step need not be simulated: answers share one
count of steps, and each ends at a count known when it begins.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final, NamedTuple

from bench.routing.faults import NO_FAULTS, Faults
from bench.routing.traces import TraceRequest

CHUNK_TOKENS: Final = 512  # llama-server's default ubatch


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A box. `prefill_tps` and `decode_tps` are those of one request alone on it; each further
    answer makes a step longer by `crowd`. `cache_tokens` is all its memory for prompts and
    answers. One that does not `tell` says nothing of its slots."""

    name: str
    slots: int
    context_tokens: int
    prefill_tps: float
    decode_tps: float
    crowd: float
    cache_tokens: int
    rtt_s: float
    tells: bool = True
    faults: Faults = NO_FAULTS

    def capacity(self, prompt_tokens: float, output_tokens: float) -> float:
        """Requests per second of that size when all slots are in use and nothing is cached."""
        step_s = (1 + self.crowd * (self.slots - 1)) / self.decode_tps
        takes_s = prompt_tokens / self.prefill_tps + output_tokens * step_s / self.slots
        return self.faults.up / takes_s


def fits(spec: NodeSpec, request: TraceRequest) -> bool:
    """Whether the node's context is large enough for prompt and answer."""
    return spec.context_tokens >= request.prompt_tokens + request.output_tokens


@dataclass(slots=True)
class Job:
    """A request on its way. `arrived`: when its caller sent it, `bound` the one node that may take
    it, if there is one, and `tried` those that failed it. `silence_s`: how long the node will be
    silent before it fails it. `first` and `done` are the node's times."""

    request: TraceRequest
    arrived: float = 0.0
    bound: int | None = None
    tried: tuple[int, ...] = ()
    silence_s: float | None = None
    sent: float = 0.0
    fresh: float = 0.0
    cached: int = 0
    read_from: float = 0.0
    first: float = 0.0
    done: float = 0.0
    node: int = -1
    failed: bool = False


class Happened(NamedTuple):
    """What just happened on a node: those that got their first token, those that are done, and
    those that it failed."""

    began: list[Job]
    ended: list[Job]
    failed: list[Job]


class Node:
    """The box at work. `advance` moves it on to a time; `next_event` says when something
    happens."""

    def __init__(self, spec: NodeSpec) -> None:
        self.spec = spec
        self.waiting: deque[Job] = deque()
        self.reading: deque[Job] = deque()
        self.writing: list[tuple[float, int, Job]] = []  # by the step count at which they end
        self.silent: list[tuple[float, int, Job]] = []  # those that it will fail, by the time
        self.version = 0
        self.prefill_tps: float | None = None  # as it measures itself
        self.decode_tps: float | None = None
        self._steps = 0.0
        self._now = 0.0
        self._serial = 0
        self._cache: OrderedDict[int, int] = OrderedDict()
        self._cached_tokens = 0

    @property
    def busy(self) -> int:
        """Slots in use."""
        return len(self.reading) + len(self.writing) + len(self.silent)

    def add(self, job: Job, now: float) -> None:
        """A request arrives."""
        self.waiting.append(job)
        self._fill(now)

    def next_event(self) -> float | None:
        """When the first prompt in line is read, or the first answer or silence ends; None when
        idle."""
        read_rate, write_rate = self._rates()
        times: list[float] = [self.silent[0][0]] if self.silent else []
        if self.reading:
            times.append(self._now + self.reading[0].fresh / read_rate)
        if self.writing:
            times.append(self._now + max(self.writing[0][0] - self._steps, 0.0) / write_rate)
        return min(times, default=None)

    def advance(self, now: float) -> None:
        """Let time pass, up to the next event at most."""
        elapsed = now - self._now
        if elapsed > 0:
            read_rate, write_rate = self._rates()
            if self.reading:
                self.reading[0].fresh -= read_rate * elapsed
            self._steps += write_rate * elapsed
        self._now = now

    def settle(self, now: float) -> Happened:
        """Note what just happened, and go on."""
        happened = Happened([], [], [])
        began, ended, failed = happened
        while self.silent and self.silent[0][0] <= now:
            failed.append(heapq.heappop(self.silent)[2])
        if self.reading and self.reading[0].fresh <= 1e-6:
            job = self.reading.popleft()
            job.first = now
            began.append(job)
            self._serial += 1
            left = max(job.request.output_tokens - 1, 0)
            heapq.heappush(self.writing, (self._steps + left, self._serial, job))
            took = now - job.read_from
            self.prefill_tps = _follow(self.prefill_tps, self._fresh(job) / took if took else None)
            self._keep(job.request)
            self._start_reading(now)
        while self.writing and self.writing[0][0] <= self._steps + 1e-6:
            _, _, job = heapq.heappop(self.writing)
            job.done = now
            ended.append(job)
            took = now - job.first
            tokens = job.request.output_tokens
            if took > 0 and tokens > 1:
                self.decode_tps = _follow(self.decode_tps, (tokens - 1) / took)
        if ended or failed:
            self._fill(now)
        return happened

    def _rates(self) -> tuple[float, float]:
        """Prompt tokens per second, and steps (tokens of each answer) per second."""
        spec, writing = self.spec, len(self.writing)
        step_s = (1 + spec.crowd * (writing - 1)) / spec.decode_tps if writing else 0.0
        if not self.reading:
            return 0.0, 1 / step_s if step_s else 0.0
        step_s += CHUNK_TOKENS / spec.prefill_tps
        return CHUNK_TOKENS / step_s, 1 / step_s

    def _fill(self, now: float) -> None:
        while self.waiting and self.busy < self.spec.slots:
            job = self.waiting.popleft()
            if job.silence_s is not None:
                self._serial += 1
                heapq.heappush(self.silent, (now + job.silence_s, self._serial, job))
                continue
            self.reading.append(job)
            if len(self.reading) == 1:
                self._start_reading(now)

    def _start_reading(self, now: float) -> None:
        if self.reading:
            job = self.reading[0]
            job.read_from = now
            job.cached = self._warm(job.request)
            job.fresh = self._fresh(job)

    @staticmethod
    def _fresh(job: Job) -> float:
        return float(max(job.request.prompt_tokens - job.cached, 1))

    def _warm(self, request: TraceRequest) -> int:
        count = 0
        for block in request.blocks:
            if block not in self._cache:
                break
            count += 1
        return request.prompt_tokens * count // len(request.blocks) if count else 0

    def _keep(self, request: TraceRequest) -> None:
        tokens = request.prompt_tokens // max(len(request.blocks), 1)
        for block in reversed(request.blocks):
            if block in self._cache:
                self._cache.move_to_end(block)
            else:
                self._cache[block] = tokens
                self._cached_tokens += tokens
        while self._cached_tokens > self.spec.cache_tokens:
            self._cached_tokens -= self._cache.popitem(last=False)[1]


def _follow(mean: float | None, sample: float | None) -> float | None:
    if sample is None:
        return mean
    return sample if mean is None else mean + 0.2 * (sample - mean)
