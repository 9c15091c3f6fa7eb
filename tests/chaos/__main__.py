"""`python -m tests.chaos`: exits with 1 if a promise was broken.

Without `--faults` faults of many kinds are injected at random, several at once, into one relay with
two nodes. With `--faults NAME,…` (or `all`) each named kind is injected alone, into its own relay.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from .kind import Kind
from .kinds import KINDS
from .needs import enter_namespaces
from .run import Plan, run
from .trial import Trial, run_trial

_CALLERS_AT_RANDOM: Final = 20
_CALLERS_OF_A_KIND: Final = 6  # two cores: pauses are then the fault's, not the machine's


def main() -> int:
    """Run as the arguments say; return the exit status."""
    given = _parser().parse_args()
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    if given.faults:
        arguments = [*sys.argv[1:], "--seed", str(seed)]
        enter_namespaces([sys.executable, "-m", "tests.chaos", *arguments])
    with tempfile.TemporaryDirectory(prefix="wai-chaos-") as made:
        folder = given.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        if given.faults:
            callers = given.streams or _CALLERS_OF_A_KIND
            return _chosen(Trial(given.faults, given.seconds, callers, seed, _say), folder)
        callers = given.streams or _CALLERS_AT_RANDOM
        return _at_random(
            Plan(given.strikes, callers, seed, given.upgrades, given.episodes, _say), folder
        )


def _at_random(plan: Plan, folder: Path) -> int:
    _say(f"{plan.faults} faults, {plan.streams} streams at once, seed {plan.seed}")
    report = run(plan, folder)
    _say(report.text())
    return 1 if report.violations else 0


def _chosen(trial: Trial, folder: Path) -> int:
    names = ", ".join(kind.name for kind in trial.kinds)
    _say(f"{names}: {trial.seconds:g} s each, {trial.callers} callers, seed {trial.seed}")
    found = run_trial(trial, folder)
    broken = [one.kind for one in found if one.broken]
    left_out = [one.kind for one in found if one.left_out]
    _say(f"broken: {', '.join(broken) or 'none'}; left out: {', '.join(left_out) or 'none'}")
    return 1 if broken else 0


def _kinds(text: str) -> list[type[Kind[Any]]]:
    """Parse the names in `--faults`."""
    names = list(KINDS) if text == "all" else text.split(",")
    if unknown := [name for name in names if name not in KINDS]:
        raise argparse.ArgumentTypeError(
            f"no such fault: {', '.join(unknown)}; there are {', '.join(KINDS)}, or all"
        )
    return [KINDS[name] for name in names]


def _say(text: str) -> None:
    print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    kinds = "\n".join(f"  {name:14} {kind.promise}" for name, kind in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        epilog=f"the kinds of faults, and what is promised of each:\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Callable[..., Any] = parser.add_argument
    add(
        "--faults",
        type=_kinds,
        default=None,
        metavar="NAME,…",
        help="inject these kinds, each alone",
    )
    add("--seconds", type=float, default=60.0, help="with --faults: how long each kind is injected")
    add("--strikes", type=int, default=500, help="at random: how many faults")
    add("--upgrades", type=int, default=4, help="at random: how many upgrades of the relay")
    add(
        "--episodes",
        type=int,
        default=2,
        help="at random: how often both nodes are stopped for long",
    )
    add("--streams", type=int, default=None, help="callers at once (6; 20 at random)")
    add("--seed", type=int, default=None, help="repeat the faults of the run with this seed")
    add("--keep", type=Path, default=None, help="leave logs in this folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
