"""`python -m bench.routing --traces DIR`: every policy, fleet, trace and load; table, JSON and
plot. Some minutes on one core."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Final

from bench.routing.fleets import FLEETS, capacity
from bench.routing.losses import BOUND, Row
from bench.routing.report import table, write
from bench.routing.rivals import POLICIES
from bench.routing.simulation import Simulation, lower_bound, median
from bench.routing.traces import load, paced
from bench.routing.tuning import tune

LOADS: Final = (0.3, 0.5, 0.7, 0.85, 0.95)
RESULTS: Final = Path(__file__).parents[1] / "results"
NOTE: Final = """\
A simulation (`python -m bench.routing`), not a measurement: continuous
batching with chunked prefill, a block cache per node, {count} requests in a row of each trace
from {offset:.0%} of it on, the first tenth uncounted; the median of {seeds} runs with different
seeds. All policies know on which nodes a request fits, and under none is a request refused,
however long it waits. Load is the share of what the fleet could serve for long with nothing
cached; arrivals are scaled to it by the factor given. wai is the relay's own scheduler. It is told
prompt lengths that are off by up to 20 % (but never so that one seems too long where it fits), no
answer lengths, no speeds (learned from what it served and from reports that come 150 ms late), and
a cache size that is wrong for some nodes. The others count what they have in flight exactly. Of a
trace's requests only those are good whose first token came within 2 s and 1 ms per prompt token.
The fleets called untold say nothing of their slots; `lab` has two servers that batch, one for one
request at a time, and one that fails three requests of ten (every policy may try three nodes).
Two settings of wai (the weight of the first token, and the time for which short prompts may pass)
were chosen on the window that begins at 25 % of the traces. Those of the others are their authors'
or plausible ones; no search was made for better ones, so the comparison favours wai. The
lower bound is
what each request would take on an idle fleet with everything cached. An embedding's first token is
its end.
Traces: Azure LLM inference trace 2023, conversation (CC BY 4.0); Mooncake, conversation, FAST 2025
(Apache-2.0); `synthetic-agents` and `synthetic-mixed` (people, reasoning and embeddings of three
keys) are made here, unlike both. Times that are equal to a tenth of a
millisecond count as equal."""


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(prog="python -m bench.routing", description=__doc__)
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"), help="folder")
    parser.add_argument("--requests", type=int, default=2000, help="of each trace")
    parser.add_argument("--offset", type=float, default=0.6, help="where in the trace, 0 to 1")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each, of which the median")
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS, help="shares, 0 to 1")
    parser.add_argument("--tune", action="store_true", help="search for the rivals' constants")
    parser.add_argument("--only", nargs="+", default=[], help="policies to tune")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    args = parser.parse_args()
    if args.tune:
        tune(args.traces, args.out, args.only)
        return
    started = time.monotonic()
    rows: list[Row] = []
    for fleet, specs in FLEETS.items():
        for name, trace in load(args.traces, args.requests, args.offset).items():
            most = capacity(specs, trace)
            for level in args.loads:
                requests, speed_up = paced(trace, level * most)
                for policy, kind in POLICIES.items():
                    seeds = range(1, args.seeds + 1)
                    runs = [Simulation(specs, kind, seed).run(requests) for seed in seeds]
                    outcome = median(runs)
                    rows.append(Row(fleet, name, level, level * most, speed_up, policy, outcome))
                bound = lower_bound(specs, requests)
                rows.append(Row(fleet, name, level, level * most, speed_up, BOUND, bound))
            print(f"{fleet}, {name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    note = NOTE.format(count=args.requests, offset=args.offset, seeds=args.seeds)
    write(rows, args.out, note)
    print(table(rows, note))


if __name__ == "__main__":
    main()
