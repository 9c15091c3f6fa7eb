"""Tries a single-file `wai` (`make node-pyz`): `python -m tests.packaging.pyz FILE`.

It runs in an empty home, with a PATH that holds one program: the Python that its first line names.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from wai_transport.version import VERSION


def run(file: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One command of the file."""
    programs = home / "bin"
    if not programs.exists():
        programs.mkdir()
        # Not this environment's: nothing of it may be of help.
        (programs / f"python{sys.version_info[0]}.{sys.version_info[1]}").symlink_to(
            getattr(sys, "_base_executable", sys.executable)
        )
    return subprocess.run(
        ["/usr/bin/env", "-i", f"PATH={programs}", f"HOME={home}", str(file), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def main(file: Path) -> int:
    """Try it; 0 if it does what it should."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        shown = run(file.resolve(), home, "--help")
        version = run(file.resolve(), home, "--version")
        # What settings mean is read from the source, which must be unpacked.
        settings = run(file.resolve(), home, "settings", "node")
        checked = run(file.resolve(), home, "doctor")
    tried = (
        ("--help", shown.returncode == 0 and "node" in shown.stdout, shown),
        ("settings node", "# Connections to keep" in settings.stdout, settings),
        ("--version", VERSION in version.stdout, version),
        # Nothing has joined here: that is what it is to say, and no traceback.
        ("doctor", checked.returncode == 1 and "Traceback" not in checked.stderr, checked),
    )
    wrong = [(name, done) for name, good, done in tried if not good]
    for name, done in wrong:
        print(f"wai {name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    if not wrong:
        print(f"{file} runs: {file.stat().st_size / 1e6:.1f} MB")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
