"""Builds the sdist and the wheel twice, and compares: `python -m tests.packaging.build FOLDER`.

Each time from a copy of the sources at another path, in another time zone and with another umask;
the wheel is made from the sdist, both in fresh environments. The time in all files is that of the
last commit, or `SOURCE_DATE_EPOCH`. What differs would make a release that nobody can check.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
TIMEOUT_S: Final = 580.0
PLACES: Final = (("a", "UTC", 0o022), ("another/place", "Asia/Kathmandu", 0o077))


def epoch() -> str:
    """When these sources were made: seconds since 1970."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return given
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def copy_sources(to: Path) -> None:
    """Copy what git has, and what it would take."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        source, target = ROOT / name, to / name
        if source.is_symlink() or source.is_file():  # not one that is deleted and not committed
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target, follow_symlinks=False)


def build(sources: Path, into: Path, zone: str, umask: int) -> None:
    """Make the manual pages, the sdist, and the wheel from it."""
    env = {**os.environ, "SOURCE_DATE_EPOCH": epoch(), "TZ": zone}
    wai = [sys.executable, "-m", "wai_cli", "manual", str(sources / "build" / "man")]
    tool = [sys.executable, "-I", "-m", "build", "--outdir", str(into), str(sources)]
    for command in (wai, tool):
        done = subprocess.run(
            command,
            cwd=sources,
            env=env,
            umask=umask,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        if done.returncode:
            sys.exit(f"{done.stdout[-3000:]}{done.stderr[-3000:]}")


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def main(folder: Path) -> int:
    """Build into `folder`; 1 if a second build has other bytes."""
    with tempfile.TemporaryDirectory(prefix="wai-dist-") as name:
        made = []
        for number, (place, zone, umask) in enumerate(PLACES):
            sources, into = Path(name, place), Path(name, str(number))
            sources.mkdir(parents=True)
            copy_sources(sources)
            build(sources, into, zone, umask)
            made.append(into)
        first, second = map(digests, made)
        if first != second:
            kept = [shutil.copytree(into, folder / into.name) for into in made]
            print(f"two builds of the same sources differ: {kept[0]}, {kept[1]}")
            return 1
        folder.mkdir(parents=True, exist_ok=True)
        for path in made[0].iterdir():
            shutil.copy(path, folder)
    sums = "".join(f"{digest}  {file}\n" for file, digest in sorted(first.items()))
    (folder / "SHA256SUMS").write_text(sums)
    print(f"built twice, with the same bytes:\n{sums}", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
