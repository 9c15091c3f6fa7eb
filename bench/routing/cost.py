"""`python -m bench.routing.cost`: CPU time of one request's admission, selection and accounting."""

from __future__ import annotations

import time

from wai_protocol.status import ModelStatus, NodeStatus
from wai_relay.access.keys import ApiKey, KeyLimits
from wai_relay.policy.admission import Admission
from wai_relay.policy.scheduler import Result, Scheduler, Tokens
from wai_relay.policy.selection import Demand

ROUNDS = 20_000


def cost_us(nodes: int, blocks: int) -> float:
    """Microseconds for one request among `nodes` nodes, its prompt of `blocks` blocks warm."""
    scheduler, admission = Scheduler(), Admission()
    model = ModelStatus(
        "m", "u", slots_total=8, context_tokens=65_536, prefill_tps=5000.0, decode_tps=50.0
    )
    for index in range(nodes):
        scheduler.update(f"node-{index}", NodeStatus((model,)), 0.0)
    limits = KeyLimits(rpm=10**9, tpm=10**12, concurrency=100)
    key = ApiKey("key", "app", b"", "", limits, 1, 0.0)
    prefix = tuple(range(blocks))
    began = time.process_time()
    for turn in range(ROUNDS):
        now = turn * 0.01
        permit = admission.admit(key, 2000, now, 1.8e9)
        demand = Demand("m", 1800, 512, prefix=prefix, nodes=None)
        placement = scheduler.submit(demand, "key", now).placement
        assert placement is not None
        scheduler.first_token(placement, now + 0.2)
        scheduler.finish(placement, now + 3.0, Result.SERVED, Tokens(1800, 900, 200))
        admission.settle(permit, 2000, now)
    return (time.process_time() - began) / ROUNDS * 1e6


def main() -> None:
    """Print a small table."""
    print("nodes  blocks  µs a request")
    for nodes, blocks in ((1, 4), (4, 4), (4, 20), (50, 4)):
        print(f"{nodes:5d}  {blocks:6d}  {cost_us(nodes, blocks):.1f}")


if __name__ == "__main__":
    main()
