"""Measure how long a stream pauses when its tunnel's connection is reset: `python -m bench.resume`.

A relay, a node and an upstream that says a number every few milliseconds, on loopback, with a proxy
in the tunnel. From the reset to the first number that reaches the caller over the new connection;
the numbers show that none was lost. One reset at a time, spaced so that each one finds a connection
that counts as steady (a node slows down when they die young).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness.cluster import cluster
from tests.harness.counted import Counted, count
from tests.harness.counting_upstream import counting_upstream
from tests.harness.fault_proxy import FaultProxy, fault_proxy

EVERY_S: Final = 0.005  # between two numbers: the resolution of what is measured
STEADY_S: Final = 1.15  # more than `wai_node.tunnel.backoff.YOUNG_S`
GOAL_MEDIAN_S: Final = 0.3
_STREAM: Final = 100_000  # numbers: no stream ends during a run


@dataclass(frozen=True, slots=True)
class Resumes:
    """Seconds from each reset to the next number."""

    seconds: list[float]

    @property
    def median_s(self) -> float:
        """Half are faster."""
        return statistics.median(self.seconds)

    @property
    def p99_s(self) -> float:
        """One in a hundred is slower."""
        return sorted(self.seconds)[min(len(self.seconds) * 99 // 100, len(self.seconds) - 1)]

    def text(self) -> str:
        """The figures in a line."""
        return (
            f"{len(self.seconds)} resets: median {self.median_s * 1000:.1f} ms,"
            f" p99 {self.p99_s * 1000:.1f} ms, longest {max(self.seconds) * 1000:.1f} ms"
            f" (goal: median ≤ {GOAL_MEDIAN_S * 1000:.0f} ms)"
        )


class Watcher:
    """Receives each number, and measures the time from a reset to the first one."""

    def __init__(self) -> None:
        self._came = threading.Condition()
        self._enough = threading.Event()
        self.connections = 0
        self.last_at = 0.0

    def on_number(self, number: int) -> None:
        """A number reached the caller."""
        with self._came:
            self.last_at = time.perf_counter()
            self._came.notify_all()
        if self._enough.is_set():
            raise ConnectionError("enough")

    def stop(self) -> None:
        """End the stream at its next number."""
        self._enough.set()

    def resumed_after(self, tunnel: FaultProxy) -> float:
        """Reset; return the seconds to the first number that came over a new connection."""
        connections = tunnel.connections
        reset_at = time.perf_counter()
        tunnel.reset()
        with self._came:
            # Numbers that were past the proxy already still arrive; those are not counted.
            self._came.wait_for(
                lambda: tunnel.connections > connections and self.last_at > reset_at, timeout=30
            )
            self._came.wait(timeout=30)
            return self.last_at - reset_at


def measure(resets: int, folder: Path) -> Resumes:
    """Run everything in `folder` and reset `resets` times."""
    watcher = Watcher()
    results: list[Counted] = []
    with (
        counting_upstream(EVERY_S) as upstream,
        cluster(folder) as running,
        fault_proxy(running.port) as tunnel,
    ):
        running.add_node("box", upstream.url, options=("--relay", tunnel.address))
        secret = running.create_key().secret

        def read() -> None:
            results.append(count(running, secret, _STREAM, on_number=watcher.on_number))

        reader = threading.Thread(target=read)
        reader.start()
        seconds = []
        try:
            for _ in range(resets):
                time.sleep(STEADY_S)
                seconds.append(watcher.resumed_after(tunnel))
        finally:
            watcher.stop()
            reader.join()
    numbers = results[0].numbers
    if numbers != list(range(len(numbers))):
        raise SystemExit("the stream lost, repeated or reordered numbers")
    return Resumes(seconds)


def main() -> None:
    """Measure and print; `--json FILE` keeps the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.resume", description=__doc__)
    parser.add_argument("--resets", type=int, default=120)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wai-resume-") as folder:
        resumes = measure(given.resets, Path(folder))
    print(resumes.text())
    if given.json is not None:
        figures = {"median_s": resumes.median_s, "p99_s": resumes.p99_s, "s": resumes.seconds}
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
