"""`python -m bench.routing --traces DIR`: every policy, fleet, trace and load; table, JSON and
plot. Some twenty minutes on one core."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from bench.routing.fleets import FLEETS, capacity
from bench.routing.losses import BOUND, Row
from bench.routing.report import table, write
from bench.routing.rivals import POLICIES
from bench.routing.simulation import Simulation, lower_bound, median
from bench.routing.traces import TraceRequest, load, paced
from bench.routing.tuning import tune

LOADS: Final = (0.3, 0.5, 0.7, 0.85, 0.95)
RESULTS: Final = Path(__file__).parents[1] / "results"
NOTE: Final = """\
A simulation (`python -m bench.routing`), not a measurement: continuous batching with chunked
prefill, a block cache per node, {count} requests in a row of each trace from {offset:.0%} of it on,
the first tenth uncounted; the median of {seeds} runs with different seeds. All policies know on
which nodes a request fits, and under none is a request refused, however long it waits. Load is the
share of what the fleet could serve for long with nothing cached; arrivals are scaled to it by the
factor given. Of a trace's requests only those are good whose first token came within 2 s and 1 ms
per prompt token. The lower bound is what each request would take on an idle fleet with everything
cached. An embedding's first token is its end. Times that are equal to a tenth of a millisecond
count as equal.

wai is the relay's own scheduler, asked as the gateway asks it. It is told prompt lengths that are
off by up to 20 % (but never so that one seems too long where it fits), no answer lengths, no speeds
(learned from what it served and from reports that come 150 ms late), and a cache size that is wrong
for some nodes. The others count what they have in flight exactly, and know every node's slots, in
the fleets called untold too, where wai must learn them; weighted least connections is told the
nodes' speeds as well.

The constants of all policies, two of wai's among them (the weight of the first token, and the time
for which short prompts may pass), were searched for in the same way on another window of the
traces, that begins at 25 %: see [the search](routing-tuning.md). Those of wai were left as they
were, for what it found is less than 1 % better. What else is fixed in wai was chosen on that window
too; but that an answer overtaken by a later one says nothing of its node was added after a first
look at this table.

`lab` has two servers that batch, one for one request at a time, and one that fails three requests
of ten at once. `shaky` has one node that fails a tenth of its requests after 5 to 20 s of silence,
and one that does so with all that come within 15 s of each minute. Every policy may try three
times, elsewhere if it can. In `synthetic-agents, bound` four sessions of ten insist on the node
that took their first turn (`X-WAI-Node`); their turns come when the one before is over, and one
that fails is tried there again.

Traces: Azure LLM inference trace 2023, conversation (CC BY 4.0); Mooncake, conversation, FAST 2025
(Apache-2.0); the synthetic ones (agents; people, reasoning and embeddings of three keys) are made
here, unlike both."""

Loads = Sequence[float]


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(prog="python -m bench.routing", description=__doc__)
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"), help="folder")
    parser.add_argument("--requests", type=int, default=1500, help="of each trace")
    parser.add_argument("--offset", type=float, default=0.6, help="where in the trace, 0 to 1")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, of which the median")
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS, help="shares, 0 to 1")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--tune", action="store_true", help="search for the policies' constants")
    parser.add_argument("--only", nargs="+", default=[], help="policies to tune")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    args = parser.parse_args()
    if args.tune:
        tune(args.traces, args.out, args.only)
        return
    started = time.monotonic()
    traces = load(args.traces, args.requests, args.offset)
    pairs = [(fleet, name) for fleet in FLEETS for name in traces]
    rows: list[Row] = []
    with ProcessPoolExecutor(args.jobs) as pool:
        work = partial(_cells, traces, args.loads, args.seeds)
        for (fleet, name), part in zip(pairs, pool.map(work, pairs), strict=True):
            rows += part
            print(f"{fleet}, {name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    note = NOTE.format(count=args.requests, offset=args.offset, seeds=args.seeds)
    write(rows, args.out, note)
    print(table(rows, note))


def _cells(
    traces: dict[str, list[TraceRequest]], loads: Loads, seeds: int, pair: tuple[str, str]
) -> list[Row]:
    """All loads and policies of one fleet and trace."""
    fleet, name = pair
    specs, trace = FLEETS[fleet], traces[name]
    most = capacity(specs, trace)
    rows: list[Row] = []
    for level in loads:
        requests, speed_up = paced(trace, level * most)
        row = partial(Row, fleet, name, level, level * most, speed_up)
        for policy, kind in POLICIES.items():
            runs = [Simulation(specs, kind, seed).run(requests) for seed in range(1, seeds + 1)]
            rows.append(row(policy, median(runs)))
        rows.append(row(BOUND, lower_bound(specs, requests)))
    return rows


if __name__ == "__main__":
    main()
