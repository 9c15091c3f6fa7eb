"""The benchmark: starts every path, loads them in turn, prints tables, keeps JSON and plots.

    python -m bench.run            everything, with peers, interleaved, three rounds
    python -m bench.run --quick    ours alone, one round, under 90 seconds

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
from bench.report import Report, table
from bench.scenarios import DIRECT, FULL, OURS, QUICK, Scenario
from bench.summary import Figures

_RESULTS: Final = Path(__file__).parent / "results"
_LOAD_TIMEOUT_S: Final = 60  # the longest scenario takes 25 s; what hangs is noted and left behind
_ROUND_TRIP_MS: Final = 200
_FAR_BYTES: Final = 128 << 20  # four seconds of one TCP connection at that distance
_STARTS: Final = 5
_NODES: Final = 1000
_ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ours alone, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="scenarios to run, by name, with commas between")
    parser.add_argument("--peers", help="peers to run, by a part of their names; 'none' for none")
    parser.add_argument("--pin", action="store_true", help="tunnel on core 0, the rest on core 1")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    args = parser.parse_args()
    allow_many_files()
    for ending in _ENDINGS:
        signal.signal(ending, _end)
    report = Report(machine=_machine())
    began_s = time.perf_counter()
    with ExitStack() as stack:
        bench = Bench(report, stack, pin=args.pin)
        wanted = None if args.only is None else args.only.split(",")
        scenarios = [
            one for one in (QUICK if args.quick else FULL) if not wanted or one.name in wanted
        ]
        bench.start_paths("none" if args.quick else args.peers)
        bench.measure(scenarios, 1 if args.quick else args.rounds)
        if not wanted or "ours" in wanted:
            try:
                bench.measure_ours(nodes=0 if args.quick else _NODES)
            except (StartError, RuntimeError) as error:
                report.notes.append(f"ours alone is incomplete: {error}")
    report.machine["took_s"] = round(time.perf_counter() - began_s)
    print(show(report))
    out = args.out or _RESULTS / time.strftime("%Y-%m-%d-%H%M%S.json")
    report.save(out)
    plots = write_plots(report, out.with_suffix(""))
    print(f"\nkept in {out}, {len(plots)} plots in {out.with_suffix('')}/")


def _end(number: int, frame: FrameType | None) -> None:
    """Leave by way of every `with`, so that no process is left; a second signal can't cut that."""
    for ending in _ENDINGS:
        signal.signal(ending, signal.SIG_IGN)
    raise SystemExit(128 + number)


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

    def __init__(self, report: Report, stack: ExitStack, *, pin: bool) -> None:
        self._report = report
        self._stack = stack
        self._pin = pin
        self._root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wai-bench-")))
        self._targets: dict[str, Target] = {}
        self._origin_port = self._start_serving("bench.origin")

    def start_paths(self, peers: str | None) -> None:
        """Bring up direct, ours and the peers named (None: all); what can't run leaves a note."""
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
        """Every scenario on every path, path after path, round after round."""
        for number in range(rounds):
            for scenario in scenarios:
                if number and not scenario.repeats:
                    continue
                for path, target in self._targets.items():
                    if scenario.is_for(path):
                        self._measure_one(scenario, path, target)

    def measure_ours(self, *, nodes: int) -> None:
        """What only ours has: how fast it starts, how it does far away, what many nodes cost."""
        if OURS not in self._targets:
            return
        ours = self._report.ours
        ours["help_ms"] = 1e3 * statistics.median(wai.help_s() for _ in range(_STARTS))
        fresh = [wai.start(self._place(f"start-{n}")) for n in range(3)]
        ours["relay_ready_ms"] = 1e3 * statistics.median(one.relay_ready_s for one in fresh)
        ours["node_ready_ms"] = 1e3 * statistics.median(one.node_ready_s for one in fresh)
        self._measure_far(ours)
        if nodes:
            self._measure_nodes(ours, nodes)

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
            load = (name, "--size", str(_FAR_BYTES))
            rates = {}
            for path, target in (("plain", plain), ("wai", tunnelled)):
                figures = self._load(load, target)
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
        figures = self._load(scenario.load_for(path), target)
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

    def _load(self, load: tuple[str, ...], target: Target) -> Figures | None:
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
                command, capture_output=True, text=True, timeout=_LOAD_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return None
        if done.returncode:
            self._note(done.stderr[-400:])
            return None
        figures: Figures = json.loads(done.stdout)
        return figures

    def _place(self, name: str) -> Place:
        folder = self._root / name.replace(" ", "-").replace("(", "").replace(")", "")
        place = Place(folder, self._origin_port, cores={0} if self._pin else None)
        return self._stack.enter_context(place)

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
        self._report.notes.append(text.strip())
        print(f"note: {text.strip()}", file=sys.stderr, flush=True)


def _far_arguments() -> tuple[str, ...]:
    return ("--round-trip-ms", str(_ROUND_TRIP_MS))


def _machine() -> dict[str, object]:
    """What the figures were taken on."""
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
