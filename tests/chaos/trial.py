"""Inject the chosen kinds of faults one after the other, each on its own stage."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness.processes import wait_until

from .findings import Findings
from .kind import Kind
from .needs import missing
from .stage import Footprint, Stage

RECOVERY_LIMIT_S: Final = 70.0  # a session has ended by then, and its streams with it
SETTLE_S: Final = 30.0
MORE_FILES: Final = 4  # of a process that nobody asks for anything, than of one that is busy
CALM_S: Final = 2.0  # between two strikes


@dataclass(frozen=True, slots=True)
class Trial:
    """How long each kind is injected (the last fault is not cut short), with how many callers."""

    kinds: Sequence[type[Kind[Any]]]
    seconds: float
    callers: int
    seed: int
    say: Callable[[str], None]


def run_trial(trial: Trial, folder: Path) -> list[Findings]:
    """Run every kind; one that this machine can't run is left out, with the reason."""
    found = []
    for kind in trial.kinds:
        one = Findings(kind.name, kind.promise)
        found.append(one)
        one.left_out = "; ".join(
            f"it needs {need.value}: {why}" for need in kind.needs if (why := missing(need))
        )
        if not one.left_out:
            place = folder / kind.name
            place.mkdir(parents=True, exist_ok=True)
            try:
                _strike(kind(random.Random(f"{trial.seed} {kind.name}")), trial, place, one)
            except pytest.skip.Exception as skipped:  # the harness says so of what it can't have
                one.left_out = str(skipped)
            except Exception as error:  # it ends this kind alone, and the report says so
                traceback.print_exc()
                one.broken.append(f"the trial ended early: {type(error).__name__}")
        trial.say(one.text())
    return found


def _strike(kind: Kind[Any], trial: Trial, folder: Path, found: Findings) -> None:
    with kind.stage(folder, trial.callers) as stage:
        callers = stage.callers
        try:
            callers.start()
            before = stage.footprint()
            struck: list[tuple[float, float]] = []
            until = time.monotonic() + trial.seconds
            while not found.strikes or time.monotonic() < until:
                began_at = time.monotonic()
                try:
                    kind.apply(stage, found)
                finally:
                    kind.undo(stage)
                good_at = time.monotonic()
                found.strikes += 1
                struck.append((began_at, good_at))
                found.resumed += callers.wait_until_resumed(good_at, RECOVERY_LIMIT_S)
                time.sleep(CALM_S)
        finally:
            callers.stop()
        found.answers = callers.answers()
        found.touched = sum(
            any(one.was_under_way(*times) for times in struck)
            for one in callers.seen
            if one.answer is not None and not one.answer.refusal
        )
        _look_for_leaks(stage, before, found)
        kind.check(stage, found)
    found.judge(may_refuse=kind.may_refuse, resumes_within_s=kind.resumes_within_s)


def _look_for_leaks(stage: Stage, before: dict[str, Footprint], found: Findings) -> None:
    """Report slots, requests and open files that are still in use after all callers have ended."""
    with suppress(AssertionError):  # what is left is then said, below
        wait_until(lambda: not stage.left_over(), "", SETTLE_S)
    found.broken += stage.left_over()
    for name, after in stage.footprint().items():
        was = before[name]
        found.notes.append(
            f"{name}: {was.open_files} → {after.open_files} open files,"
            f" {was.memory_mib:.0f} → {after.memory_mib:.0f} MiB"
        )
        if after.open_files > was.open_files + MORE_FILES:
            found.broken.append(
                f"{name} has {after.open_files} open files, {was.open_files} before"
            )
