"""The benchmark: start every path, load them in turn, print tables, write JSON and plots.

    python -m bench.run            everything, with peers, interleaved, three rounds, 15 minutes
    python -m bench.run --quick    ours alone, one round, under 90 seconds

Results are stored as they come: Ctrl-C ends a run with the tables of what there is. A round
that would not end in time is left out, and a note says so.

It judges nothing by time that a test would: figures are shown against the goals, and that is all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Final

from bench import wai
from bench.clients import Target
from bench.goals import verdicts
from bench.peers import PEERS
from bench.place import Place, StartError
from bench.plot import write_plots
from bench.procstat import allow_many_files
from bench.progress import Progress
from bench.report import Report, table
from bench.scenarios import DIRECT, FULL, OURS, QUICK, Scenario
from bench.summary import Figures

_RESULTS: Final = Path(__file__).parent / "results"
_FAR_BOUND_S: Final = 60.0
_ROUND_TRIP_MS: Final = 200
_FAR_BYTES: Final = 128 << 20  # four seconds of one TCP connection at that distance
_QUICK_FAR_BYTES: Final = 48 << 20
_STARTS: Final = 10
_QUICK_STARTS: Final = 3
_BUDGET_S: Final = 14 * 60.0  # the whole run is to be over within 15 minutes
_OURS_S: Final = 75.0  # of it for what only ours has
_NODES: Final = 1000
_ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ours alone, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="scenarios to run, by name, with commas between")
    parser.add_argument("--peers", help="peers to run, by a part of their names; 'none' for none")
    parser.add_argument("--pin", action="store_true", help="tunnel on core 0, the rest on core 1")
    parser.add_argument("--out", type=Path, help="where the JSON goes: NAME.json")
    args = parser.parse_args()
    if args.out is not None and args.out.suffix != ".json":
        parser.error("--out names a .json file; the plots go into a folder of that name beside it")
    allow_many_files()
    # An installed wai has its bytecode: a start that compiles its modules is not what users see.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for ending in _ENDINGS:
        signal.signal(ending, _end)
    out = args.out or _RESULTS / time.strftime("%Y-%m-%d-%H%M%S.json")
    report = Report(machine=_machine())
    began_s = time.perf_counter()
    status = 0
    try:
        with ExitStack() as stack:
            _measure(Bench(report, stack, out, pin=args.pin, quick=args.quick), args)
    except Ended as ended:
        status = ended.status
        report.notes.append("the run was ended before it was complete")
    report.machine["took_s"] = round(time.perf_counter() - began_s)
    report.save(out)
    print(show(report))
    plots = write_plots(report, out.with_suffix(""))
    print(f"\nkept in {out}, {len(plots)} plots in {out.with_suffix('')}/")
    sys.exit(status or (0 if ours_measured(report) else 1))


def _measure(bench: Bench, args: argparse.Namespace) -> None:
    wanted = None if args.only is None else args.only.split(",")
    scenarios = [one for one in (QUICK if args.quick else FULL) if not wanted or one.name in wanted]
    bench.start_paths("none" if args.quick else args.peers)
    bench.measure(scenarios, 1 if args.quick else args.rounds)
    if not wanted or "ours" in wanted:
        bench.measure_ours(nodes=0 if args.quick else _NODES)


class Ended(BaseException):
    """A signal ended the run; `status` is the exit status."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


def _end(number: int, frame: FrameType | None) -> None:
    """Raise, so that every `with` block ends its processes; ignore a second signal meanwhile."""
    for ending in _ENDINGS:
        signal.signal(ending, signal.SIG_IGN)
    raise Ended(number)


def ours_measured(report: Report) -> bool:
    """Return whether our own path started and was measured."""
    return bool(report.ours) or any(OURS in paths for paths in report.rounds.values())


def show(report: Report) -> str:
    """All tables, the goals, and what was left out."""
    text = "".join(table(report, scenario) for scenario in FULL)
    if report.ours:
        text += "\nOurs alone\n"
        text += "".join(f"  {name}: {value:.4g}\n" for name, value in report.ours.items())
    text += verdicts(report)
    return text + "".join(f"\nnote: {note}" for note in report.notes)


class Bench:
    """The running paths, and what is measured on them."""

    def __init__(
        self, report: Report, stack: ExitStack, out: Path, *, pin: bool, quick: bool
    ) -> None:
        self._report = report
        self._out = out
        self._began_s = time.monotonic()
        self._progress = Progress(0)
        self._starts = _QUICK_STARTS if quick else _STARTS
        self._far_bytes = _QUICK_FAR_BYTES if quick else _FAR_BYTES
        self._stack = stack
        self._pin = pin
        self._root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wai-bench-")))
        self._targets: dict[str, Target] = {}
        self._origin_port = self._start_serving("bench.origin")

    def start_paths(self, peers: str | None) -> None:
        """Start direct, ours and the named peers (None: all); note those that can't run."""
        self._targets[DIRECT] = Target(url=f"http://127.0.0.1:{self._origin_port}")
        try:
            started = wai.start(self._place("wai"))
            self._targets[OURS] = started.target
        except (StartError, RuntimeError) as error:
            self._note(f"wai is left out: {error}")
        for peer in PEERS:
            if peers is not None and not any(p in peer.name for p in peers.split(",")):
                continue
            reason = peer.missing()
            if reason is None:
                try:
                    self._targets[peer.name] = peer.start(self._place(peer.name))
                except (StartError, subprocess.SubprocessError) as error:
                    reason = str(error)
            if reason is not None:
                self._note(f"{peer.name} is left out: {reason}")

    def measure(self, scenarios: list[Scenario], rounds: int) -> None:
        """Measure every scenario on every path, in rounds."""
        plan = [
            [
                (scenario, path)
                for scenario in scenarios
                if scenario.repeats or not number
                for path in self._targets
                if scenario.is_for(path)
            ]
            for number in range(rounds)
        ]
        self._progress = Progress(sum(map(len, plan)))
        for number, cells in enumerate(plan):
            round_s = 0.0
            for scenario, path in cells:
                self._progress.now(f"{scenario.name}, {path}")
                began_s = time.monotonic()
                self._measure_one(scenario, path, self._targets[path])
                self._report.save(self._out)
                if scenario.repeats:
                    round_s += time.monotonic() - began_s
            left_s = _BUDGET_S - _OURS_S - (time.monotonic() - self._began_s)
            if number + 1 < rounds and round_s > left_s:
                self._note(
                    f"{number + 1} of {rounds} rounds: one took {round_s:.0f} s, and the run is to"
                    f" be over within {_BUDGET_S / 60:.0f} minutes"
                )
                return

    def measure_ours(self, *, nodes: int) -> None:
        """Measure what only our path has: start times, long round trips, many nodes."""
        if OURS not in self._targets:
            return
        parts: list[tuple[str, Callable[[Figures], None]]] = [
            ("starts", self._measure_starts),
            ("a long way", self._measure_far),
        ]
        if nodes:
            parts.append((f"{nodes} nodes", lambda ours: self._measure_nodes(ours, nodes)))
        self._progress = Progress(len(parts))
        for what, measure in parts:
            self._progress.now(what)
            try:
                measure(self._report.ours)
            except (StartError, RuntimeError, subprocess.SubprocessError) as error:
                self._note(f"{what}: not measured: {error}")
            self._progress.step()
            self._report.save(self._out)

    def _measure_starts(self, ours: Figures) -> None:
        """Measure wall times of starts, after one start that compiled the bytecode."""
        took = {"help": [wai.help_took() for _ in range(self._starts)]}
        with self._new_place("starts") as place:
            started = wai.start(place)
            both = [wai.restart(place, started) for _ in range(self._starts)]
        took |= {"relay_ready": [one[0] for one in both], "node_ready": [one[1] for one in both]}
        for what, all_took in took.items():
            ours[f"{what}_ms"] = 1e3 * statistics.median(one.wall_s for one in all_took)
            ours[f"{what}_cpu_ms"] = 1e3 * statistics.median(one.cpu_s for one in all_took)

    def _measure_far(self, ours: Figures) -> None:
        """Bulk over a tunnel with a long round trip, against one TCP connection that long."""
        far_origin = self._start_serving(
            "bench.slowlink", "--target-port", str(self._origin_port), *_far_arguments()
        )
        place = self._place("far")
        plain = Target(url=f"http://127.0.0.1:{far_origin}")
        tunnelled = wai.start(place, through=self._far_relay).target
        for name in ("download", "upload"):
            key = {"download": "down", "upload": "up"}[name]
            load = (name, "--size", str(self._far_bytes))
            rates = {}
            for path, target in (("plain", plain), ("wai", tunnelled)):
                figures = self._load(load, target, _FAR_BOUND_S)
                if figures is not None:
                    rates[path] = ours[f"far_{key}_{path}_mb_per_s"] = figures["mb_per_s"]
            if len(rates) == 2:
                ours[f"far_{key}_ratio"] = rates["wai"] / rates["plain"]

    def _far_relay(self, relay_port: int) -> str:
        """A forwarder in front of the relay: what the far node dials."""
        port = self._start_serving(
            "bench.slowlink", "--target-port", str(relay_port), *_far_arguments()
        )
        return f"127.0.0.1:{port}"

    def _measure_nodes(self, ours: Figures, count: int) -> None:
        """Many node sessions from one process, all on a relay of their own."""
        started = wai.start(self._place("nodes"))
        command = [sys.executable, "-m", "bench.nodes", "--count", str(count)]
        command += ["--data", str(started.data)]
        command += ["--relay-pid", str(started.target.watch["relay"][0])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        if done.returncode:
            self._note(f"{count} nodes were not measured: {done.stderr[-400:]}")
        else:
            ours |= json.loads(done.stdout)

    def _measure_one(self, scenario: Scenario, path: str, target: Target) -> None:
        figures = self._load(scenario.load_for(path), target, scenario.bound_s)
        self._progress.step()
        if figures is None:
            self._note(f"{scenario.name} failed on {path}")
            return
        if figures.get("errors"):
            self._note(f"{scenario.name} on {path}: {figures['errors']:.0f} failed")
        self._report.add(scenario.name, path, figures)
        key = scenario.shown[0]
        print(
            f"{scenario.name:12} {path:28} {key} {figures.get(key, float('nan')):.4g}", flush=True
        )

    def _load(self, load: tuple[str, ...], target: Target, bound_s: float) -> Figures | None:
        command = [
            sys.executable,
            "-m",
            "bench.load",
            *load,
            "--target",
            json.dumps(asdict(target)),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=bound_s, check=False
            )
        except subprocess.TimeoutExpired:
            self._note(f"{load[0]} was not done after {bound_s:g} s")
            return None
        if done.returncode:
            self._note(done.stderr[-400:])
            return None
        figures: Figures = json.loads(done.stdout)
        return figures

    def _place(self, name: str) -> Place:
        return self._stack.enter_context(self._new_place(name))

    def _new_place(self, name: str) -> Place:
        folder = self._root / name.replace(" ", "-").replace("(", "").replace(")", "")
        return Place(folder, self._origin_port, cores={0} if self._pin else None)

    def _start_serving(self, module: str, *arguments: str) -> int:
        """Start one of our own servers; the port that it says it listens on."""
        place = self._stack.enter_context(Place(self._root / f"{module}-{time.monotonic_ns()}", 0))
        if self._pin:
            place.cores = {(os.cpu_count() or 2) - 1}
        environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
        place.spawn(module, [sys.executable, "-m", module, *arguments], environment)
        place.wait_for(module, lambda: "ready " in place.log(module))
        return int(place.log(module).split()[1])

    def _note(self, text: str) -> None:
        self._progress.clear()
        self._report.notes.append(text.strip())
        print(f"note: {text.strip()}", file=sys.stderr, flush=True)


def _far_arguments() -> tuple[str, ...]:
    return ("--round-trip-ms", str(_ROUND_TRIP_MS))


def _machine() -> dict[str, object]:
    """Describe the machine of the measurement."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "load_before": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
