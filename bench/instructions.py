"""`python -m bench.instructions`: count the instructions of a request and of an event.

It runs the parts of `bench.python_cost` under Valgrind's callgrind, and compares the counts with
those in `bench/results/instructions.json`: one that is more than 3 % higher is an error. Unlike
times, counts do not depend on how busy the machine is. They do depend on the build of Python, which
is written beside them (`--write`).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from bench.python_build import python_build
from bench.python_cost import parts
from wai_relay.usage import recorder
from wai_transport import access_lines

RESULTS: Final = Path(__file__).with_name("results") / "instructions.json"
PARTS: Final = ("relay-request", "relay-event", "node-request", "node-event")
TOLERANCE: Final = 0.03
COUNTED: Final = 256  # items: as many as the largest batch of work that is put off
BATCHES: Final = 3
SLOWDOWN: Final = 50  # of a program under callgrind
_MARK: Final = "getloadavg"  # a C function that nothing but `_Marks` calls
_TOTALS: Final = re.compile(r"^totals: (\d+)$", re.MULTILINE)


class _Marks:
    """A meter that has callgrind write what it has counted, at each `run` and `stop` of the last
    of `batches`; those before it fill caches and pools."""

    def __init__(self, batches: int) -> None:
        self._warming = batches - 1

    def run(self) -> None:
        if not self._warming:
            os.getloadavg()

    def stop(self) -> None:
        if not self._warming:
            os.getloadavg()

    def end_batch(self, size: int) -> None:
        self._warming -= 1


async def _work(name: str) -> None:
    """Run one part. Timers that collect work from many requests wait longer, as all is slower; the
    garbage collector, whose runs fall where they like, is off."""
    gc.disable()
    access_lines.FLUSH_S *= SLOWDOWN  # type: ignore[misc]
    recorder.FLUSH_INTERVAL_S *= SLOWDOWN  # type: ignore[misc]
    async with parts() as all_parts:
        await all_parts[name](_Marks(BATCHES), BATCHES, COUNTED)


def count(name: str) -> int:
    """Return the instructions of one item of the part `name`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind"
        subprocess.run(
            [
                *("valgrind", "-q", "--tool=callgrind", f"--dump-before={_MARK}"),
                "--separate-threads=yes",  # the database's thread works when it likes
                f"--callgrind-out-file={out}",
                *(sys.executable, "-m", "bench.instructions", "--work", name),
            ],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        dumps = sorted(
            (path for path in out.parent.glob("callgrind.*-01")),  # those of the main thread
            key=lambda path: int(path.suffix[1:].partition("-")[0]),
        )
        return measured([path.read_text() for path in dumps]) // COUNTED


def measured(dumps: list[str]) -> int:
    """Return the sum of the counts between each `run` and its `stop`.

    `dumps`: callgrind's, in order. The first has what came before the first `run`; from there on
    dumps of what is measured and of what is not take turns. Raises `ValueError` if there are none.
    """
    totals = [int(found[1]) for dump in dumps if (found := _TOTALS.search(dump))]
    if len(totals) < 2:
        raise ValueError("callgrind wrote no counts: it does not see Python's call of getloadavg")
    return sum(totals[1::2])


def compare(counts: dict[str, int], kept: dict[str, int]) -> list[str]:
    """Return a sentence for each count that is more than `TOLERANCE` above the kept one."""
    return [
        f"{name}: {now:,} instructions, {now / kept[name] - 1:.1%} more than {kept[name]:,}"
        for name, now in counts.items()
        if name in kept and now > kept[name] * (1 + TOLERANCE)
    ]


@dataclass(frozen=True, slots=True)
class _Kept:
    """The counts in the repository, and the build of Python that they are of."""

    python: str
    counts: dict[str, int]


def _read_kept() -> _Kept:
    return _Kept(**json.loads(RESULTS.read_text())) if RESULTS.exists() else _Kept("no build", {})


def _main(parsed: argparse.Namespace) -> int:
    if shutil.which("valgrind") is None:
        print("bench: valgrind is not installed (Debian: apt-get install valgrind)")
        return 1
    kept = _read_kept()
    counts: dict[str, int] = {}
    for name in PARTS:
        counts[name] = count(name)
        before = kept.counts.get(name)
        change = f"  {counts[name] / before - 1:+.1%} (was {before:,})" if before else ""
        print(f"{name:14} {counts[name]:>10,}{change}", flush=True)
    build = python_build()
    if parsed.write:
        RESULTS.write_text(json.dumps({"python": build, "counts": counts}, indent=2) + "\n")
        return 0
    if kept.python != build:
        print(f"nothing to compare with: the kept counts are of {kept.python}, these of {build}")
        return 0
    more = compare(counts, kept.counts)
    for sentence in more:
        print(sentence)
    return 1 if more else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep these counts")
    parser.add_argument("--work", choices=PARTS, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.work:
        uvloop.run(_work(parsed.work))
        return
    sys.exit(_main(parsed))


if __name__ == "__main__":
    main()
