"""Run a relay, two nodes and callers without a pause, and inject several faults at once."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from tests.harness.cluster import Cluster, cluster
from tests.harness.counted import count
from tests.harness.counting_upstream import CountingUpstream, counting_upstream
from tests.harness.fault_proxy import fault_proxy
from tests.harness.processes import wait_until

from .faults import DEAD_S, TUNNEL_FAULTS, UPSTREAM_FAULTS, Box, Fault
from .report import Report

NODES: Final = ("left", "right")
EVERY_S: Final = 0.03  # between two numbers of a stream
NUMBERS: Final = 200  # of a stream: six seconds, if nothing happens
SESSION_TTL_S: Final = 15.0  # longer than any stop or stall here, on a busy machine too
GONE_S: Final = 20.0  # both nodes, in the episodes that streams can't survive
_SETTLE_S: Final = 30.0
_GROWTH_MIB: Final = 24.0  # of memory, over that of a relay or node that has served a while
_GROWTH_FILES: Final = 4
_PROGRESS_S: Final = 10.0
_CONTINUE: Final = {"X-WAI-Continue": "1"}


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a run. `upgrades`: of the relay; `episodes`: both nodes stopped for long."""

    faults: int
    streams: int
    seed: int
    upgrades: int
    episodes: int
    say: Callable[[str], None] = field(default=print)


class Calm:
    """A lock: ordinary faults may overlap, and some faults must be alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._striking = 0
        self._alone = False

    @contextmanager
    def one_of_many(self) -> Iterator[None]:
        """Hold during a fault that others may overlap."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._striking += 1
        try:
            yield
        finally:
            with self._changed:
                self._striking -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold during a fault that waits for the others to end, and lets none begin."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._alone = True
            self._changed.wait_for(lambda: not self._striking)
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()


class Run:
    """One run. Call `go` once."""

    def __init__(
        self, plan: Plan, running: Cluster, boxes: list[Box], upstream: CountingUpstream
    ) -> None:
        self.report = Report(plan.seed, down=[box.down for box in boxes])
        self._plan = plan
        self._cluster = running
        self._boxes = boxes
        self._upstream = upstream
        self._secret = running.create_key().secret
        self._calm = Calm()
        self._lock = threading.Lock()
        self._struck = 0
        self._stop = threading.Event()
        self._crashed: list[BaseException] = []
        self.relay_pid = running.relay.pid

    def go(self) -> Report:
        """Warm up, inject faults, wait for recovery, and look for leaks."""
        plan = self._plan
        self._together([self._caller_once] * plan.streams)
        before = self._footprint()
        self.report.began_at = time.monotonic()
        callers = [threading.Thread(target=self._caller) for _ in range(plan.streams)]
        for caller in callers:
            caller.start()
        dice = random.Random(plan.seed)
        lanes = [
            self._lane(box, faults, random.Random(dice.random()))
            for box in self._boxes
            for faults in (TUNNEL_FAULTS, UPSTREAM_FAULTS)
        ]
        try:
            self._together([*lanes, self._rare, self._progress])
        finally:
            self._stop.set()
            for box in self._boxes:
                box.tunnel.clear()
                box.upstream.clear()
            for caller in callers:
                caller.join()
        if self._crashed:
            raise self._crashed[0]
        self.report.took_s = time.monotonic() - self.report.began_at
        self._look_for_leaks(before)
        return self.report

    # -- callers

    def _caller(self) -> None:
        while not self._stop.is_set():
            self._caller_once()

    def _caller_once(self) -> None:
        stream = count(self._cluster, self._secret, NUMBERS, headers=_CONTINUE)
        with self._lock:
            self.report.streams.append(stream)
        if stream.refusal:
            time.sleep(1.0)

    # -- faults

    def _lane(
        self, box: Box, faults: Mapping[str, tuple[int, Fault]], dice: random.Random
    ) -> Callable[[], None]:
        kinds = list(faults)
        weights = [faults[kind][0] for kind in kinds]

        def strike() -> None:
            while self._next():
                kind = dice.choices(kinds, weights)[0]
                with self._calm.one_of_many():
                    faults[kind][1](box, dice)
                self._struck_by(kind)
                time.sleep(dice.uniform(0.3, 1.2))

        return strike

    def _rare(self) -> None:
        """Run upgrades and episodes, spread over the run."""
        plan = self._plan
        rare = [self._upgrade] * plan.upgrades + [self._all_gone] * plan.episodes
        random.Random(plan.seed).shuffle(rare)
        for number, event in enumerate(rare, start=1):
            due = plan.faults * number // (len(rare) + 1)
            while self._struck < due and not self._crashed:
                time.sleep(0.1)
            with self._calm.alone():
                event()

    def _upgrade(self) -> None:
        """Send SIGUSR2, without other faults until the old relay has ended its streams: a stream
        that loses its connection meanwhile can't resume, since the next connection leads to the new
        relay."""
        time.sleep(2 * DEAD_S)  # what is half-open now is found
        old = self.relay_pid
        os.kill(old, signal.SIGUSR2)
        wait_until(lambda: self._announced_pid() != old, "no new relay took over")
        self.relay_pid = self._announced_pid()
        wait_until(lambda: not _alive(old), "the old relay does not end", 60.0)
        self._struck_by("relay upgraded")

    def _announced_pid(self) -> int:
        pid: int = json.loads((self._cluster.data / "relay.json").read_text())["pid"]
        return pid

    def _all_gone(self) -> None:
        self._together([lambda box=box: box.kill(GONE_S) for box in self._boxes])  # type: ignore[misc]
        self._struck_by("both nodes killed for long")

    def _next(self) -> bool:
        return self._struck < self._plan.faults and not self._crashed

    def _struck_by(self, kind: str) -> None:
        with self._lock:
            self._struck += 1
            self.report.faults[kind] += 1

    def _progress(self) -> None:
        said_at = time.monotonic()
        while self._next():
            time.sleep(0.2)
            if time.monotonic() - said_at >= _PROGRESS_S:
                said_at = time.monotonic()
                self._plan.say(f"{self._struck} faults, {len(self.report.streams)} streams over")

    def _together(self, works: list[Callable[[], None]]) -> None:
        """Run each in a thread; `go` raises their exceptions."""

        def guarded(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as error:
                self._crashed.append(error)

        threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    # -- leaks

    def _footprint(self) -> dict[str, tuple[int, float]]:
        """Return the open files and the MiB of memory of each process."""
        pids = {"relay": self.relay_pid}
        pids |= {name: node.daemon.pid for name, node in self._cluster.nodes.items()}
        found = {}
        for name, pid in pids.items():
            process = psutil.Process(pid)
            found[name] = process.num_fds(), process.memory_info().rss / 2**20
        return found

    def _look_for_leaks(self, before: dict[str, tuple[int, float]]) -> None:
        report = self.report
        with suppress(AssertionError):
            wait_until(lambda: not self._leaks(before), "", _SETTLE_S)
        report.leaks = self._leaks(before)
        after = self._footprint()
        for name, (files, mib) in after.items():
            was = before[name]
            report.notes.append(
                f"{name}: {was[0]} → {files} open files, {was[1]:.0f} → {mib:.0f} MiB"
            )

    def _leaks(self, before: dict[str, tuple[int, float]]) -> list[str]:
        found = []
        for name, (files, mib) in self._footprint().items():
            if files > before[name][0] + _GROWTH_FILES:
                found.append(f"{name} has {files} open files, {before[name][0]} at first")
            if mib > before[name][1] + _GROWTH_MIB:
                found.append(f"{name} has {mib:.0f} MiB, {before[name][1]:.0f} at first")
        if self._upstream.seen.running:
            found.append(f"the upstream still answers {self._upstream.seen.running} requests")
        found += [
            f"{node['name']} is {node['state']}, {node['slots_busy']} slots busy"
            for node in self._cluster.list_nodes()
            if node["slots_busy"] or node["queued"] or node["state"] != "ready"
        ]
        return found


def run(plan: Plan, folder: Path) -> Report:
    """Start everything in `folder`, run `plan`, stop everything."""
    keepalive = f"ping_s = 1.0\ndead_s = {DEAD_S}\n"
    relay_settings, node_settings = folder / "relay.toml", folder / "node.toml"
    relay_settings.write_text(f"{keepalive}session_ttl_s = {SESSION_TTL_S}\n")
    node_settings.write_text(keepalive)
    with ExitStack() as stack:
        upstream = stack.enter_context(counting_upstream(EVERY_S))
        running = stack.enter_context(cluster(folder, "--config", str(relay_settings)))
        boxes = []
        for name in NODES:
            tunnel = stack.enter_context(fault_proxy(running.port))
            near = stack.enter_context(fault_proxy(upstream.port))
            options = ("--config", str(node_settings), "--relay", tunnel.address)
            running.add_node(name, near.url, options=options)
            boxes.append(Box(running, name, tunnel, near, (*options, "--upstream", near.url)))
        whole = Run(plan, running, boxes, upstream)
        try:
            return whole.go()
        finally:
            if whole.relay_pid != running.relay.pid:  # else the rig ends it
                os.kill(whole.relay_pid, signal.SIGTERM)
                wait_until(lambda: not _alive(whole.relay_pid), "the last relay does not end")


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
