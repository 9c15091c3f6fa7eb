"""Peers that come as Python packages, each in a virtual environment of its own under a cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

_INSTALL_TIMEOUT_S: Final = 300  # LiteLLM's proxy brings some 100 packages


def cache_folder() -> Path:
    """Where the environments are kept between runs."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "wai-bench"


def why_not_installed(name: str, requirement: str, program: str) -> str | None:
    """Install `requirement` into the environment `name` unless it is there; None if that worked."""
    folder = cache_folder() / name
    if (folder / "bin" / program).exists():
        return None
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
        subprocess.run(
            [str(folder / "bin" / "pip"), "install", "-q", requirement],
            check=True,
            capture_output=True,
            timeout=_INSTALL_TIMEOUT_S,
        )
    except (subprocess.SubprocessError, OSError) as error:
        return f"{requirement} could not be installed: {error}"
    if not (folder / "bin" / program).exists():
        return f"{requirement} brought no {program}"
    return None


def program_path(name: str, program: str) -> str:
    """The program in the environment `name`."""
    return str(cache_folder() / name / "bin" / program)
