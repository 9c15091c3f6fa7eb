"""`python -m bench.routing.cost`: CPU time of one request's policy and accounting, all together.

Policy: admission, the choice of a node, the news of its first token and of its end. Accounting: the
record of the request with its attempt, kept for `wai explain`, counted for `wai usage`, and its row
made and handed to the store. The writer thread's share, which is SQLite's, is told apart.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

from wai_api.limits import KeyLimits
from wai_protocol.status import ModelStatus, NodeStatus
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.contracts.records import Attempt, RequestRecord, TokenCounts
from wai_relay.observe.explain import Explanations
from wai_relay.policy.admission import Admission, TokenClaim
from wai_relay.policy.demands import Demand
from wai_relay.policy.scheduler import Result, Scheduler, Tokens
from wai_relay.storage import SqliteStore
from wai_relay.usage import UsageRecorder

ROUNDS: Final = 10_000
BATCH: Final = 100  # requests between two looks of the writer thread's at its work
WALL: Final = 1.8e9


class Cost(NamedTuple):
    """Microseconds of CPU a request: the median of batches, for a busy machine slows some."""

    policy: float
    accounting: float
    writer: float


async def cost_us(nodes: int, blocks: int, folder: Path) -> Cost:
    """What one request costs among `nodes` nodes, its prompt of `blocks` blocks warm."""
    scheduler = Scheduler()
    model = ModelStatus(
        "m", "u", slots_total=8, context_tokens=65_536, prefill_tps=5000.0, decode_tps=50.0
    )
    for index in range(nodes):
        scheduler.update(f"node-{index}", NodeStatus((model,)), 0.0)
    limits = KeyLimits(rpm=10**9, tpm=10**12, concurrency=100, monthly_tokens=10**15)
    key = ApiKey("key", "app", b"", "", limits, 1, 0.0)
    prefix = tuple(range(blocks))
    store = SqliteStore.open(folder / f"{nodes}-{blocks}.db")
    recorder = await UsageRecorder.load(store, lambda: 86400.0, wall_clock=lambda: WALL)
    admission, explanations = Admission(recorder.months), Explanations()
    spent: list[tuple[float, float]] = []  # by batch, in ns a request
    policy = accounting = 0
    writer_began = time.process_time_ns() - time.thread_time_ns()
    for turn in range(ROUNDS):
        now = turn * 0.01
        t0 = time.thread_time_ns()
        permit = admission.enter(key, now, WALL)
        admission.reserve(permit, key, TokenClaim(1800, 512, 7712), now, WALL)
        demand = Demand("m", 1800, 512, prefix=prefix, nodes=None)
        placement = scheduler.submit(demand, "key", now).placement
        assert placement is not None
        scheduler.first_token(placement, now + 0.2)
        scheduler.finish(placement, now + 3.0, Result.SERVED, Tokens(1800, 900, 200))
        admission.settle(permit, 2000, now)
        t1 = time.thread_time_ns()
        record = RequestRecord(f"req_{turn}", WALL, "POST", "/v1/chat/completions")
        record.key_id, record.model, record.served_model = "key", "m", "m"
        record.node, record.reason = placement.node, str(placement.decision.reason)
        record.attempts, record.status, record.ttft_ms, record.duration_ms = 1, 200, 200.0, 3000.0
        record.tried.append(Attempt(record.node, "m", "x", 0.0, placement.decision.scores))
        record.tokens = TokenCounts(1800, 900, 200, exact=True)
        explanations.remember(record)
        recorder.finish(record)
        t2 = time.thread_time_ns()
        policy += t1 - t0
        accounting += t2 - t1
        if turn % BATCH == BATCH - 1:
            spent.append((policy / BATCH, accounting / BATCH))
            policy = accounting = 0
            await recorder.settle()
    await recorder.settle()
    writer = time.process_time_ns() - time.thread_time_ns() - writer_began
    await recorder.close()
    await store.close()
    return Cost(
        statistics.median(batch[0] for batch in spent) / 1000,
        statistics.median(batch[1] for batch in spent) / 1000,
        writer / ROUNDS / 1000,
    )


async def run() -> None:
    """Print a small table."""
    print("nodes  blocks  policy  accounting  together  writer thread, in µs a request")
    with tempfile.TemporaryDirectory() as folder:
        for nodes, blocks in ((1, 4), (4, 4), (4, 20), (50, 4), (50, 0)):
            cost = await cost_us(nodes, blocks, Path(folder))
            print(
                f"{nodes:5d}  {blocks:6d}  {cost.policy:6.1f}  {cost.accounting:10.1f}"
                f"  {cost.policy + cost.accounting:8.1f}  {cost.writer:13.1f}"
            )


if __name__ == "__main__":
    asyncio.run(run())
