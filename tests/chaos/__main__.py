"""`python -m tests.chaos`: exits with 1 if a promise was broken."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from .run import Plan, run


def main() -> int:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--upgrades", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=2, help="both nodes gone for long")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", type=Path, default=None, help="leave logs in this folder")
    given = parser.parse_args()
    seed = random.randrange(1 << 32) if given.seed is None else given.seed

    def say(text: str) -> None:
        print(text, flush=True)

    plan = Plan(given.faults, given.streams, seed, given.upgrades, given.episodes, say)
    say(f"{given.faults} faults, {given.streams} streams at once, seed {seed}")
    with tempfile.TemporaryDirectory(prefix="wai-chaos-") as made:
        folder = given.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        report = run(plan, folder)
    say(report.text())
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
