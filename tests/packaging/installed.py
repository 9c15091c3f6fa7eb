"""Installs the built wheel as people do: `python -m tests.packaging.installed FOLDER`.

By `pip install` into a fresh environment, and by `uv tool install`: the command answers, help loads
every module that it needs, a relay serves its dashboard and hands out a wheel of itself.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.harness.processes import free_port
from wai_transport.version import VERSION

TIMEOUT_S: Final = 300.0
READY_S: Final = 60.0
UV: Final = Path(sys.executable).parent / "uv"


def by_pip(wheel: Path, home: Path) -> Path:
    """The command, installed into a fresh environment."""
    venv.create(home / "env", with_pip=True)
    python = home / "env" / "bin" / "python"
    _done([str(python), "-I", "-m", "pip", "install", "--quiet", str(wheel)], home)
    return python.parent / "wai"


def by_uv(wheel: Path, home: Path) -> Path:
    """The command, installed as a tool of uv's, which asks the index that pip is configured for."""
    index = _done(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], home, ask=True
    )
    options = ["--index-url", index.strip()] if index.strip() else []
    _done([str(UV), "tool", "install", "--quiet", *options, str(wheel)], home)
    return home / ".local" / "bin" / "wai"


def _done(command: list[str], home: Path, *, ask: bool = False) -> str:
    """What a command prints; it must end well, unless one only asks."""
    done = subprocess.run(
        command,
        cwd=home,
        env=_environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    if done.returncode and not ask:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _environment(home: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("PIP_", "UV_", "SSL_", "HTTPS_PROXY", "NO_PROXY"))
    }
    folders = {"HOME": str(home), "XDG_DATA_HOME": "", "UV_TOOL_BIN_DIR": f"{home}/.local/bin"}
    return {**kept, **folders, "PATH": "/usr/bin:/bin", "UV_PYTHON": sys.executable}


def try_command(wai: Path, home: Path) -> None:
    """Try what an installation must be able to do. Ends the program at the first fault."""
    assert _done([str(wai), "--version"], home) == f"wai {VERSION}\n"
    for words in (("up", "--help"), ("node", "run", "--help"), ("settings", "relay")):
        assert _done([str(wai), *words], home)
    _done([str(wai), "manual", str(home / "man")], home)
    assert (home / "man" / "man5" / "wai-relay.toml.5").is_file()
    with _relay(wai, home) as (url, context):
        page = _get(f"{url}/dashboard", context)
        assert "<script" in page
        script = _get(f"{url}/install.sh", context)
        assert f"-{VERSION}-py3-none-any.whl" in script


@contextmanager
def _relay(wai: Path, home: Path) -> Iterator[tuple[str, ssl.SSLContext]]:
    data, port = home / "relay", free_port()
    command = [str(wai), "relay", "--data", str(data), "--listen", f"127.0.0.1:{port}"]
    with (home / "relay.log").open("wb") as log:
        running = subprocess.Popen(command, env=_environment(home), stderr=log, cwd=home)
    try:
        ends = time.monotonic() + READY_S
        while not (data / "relay.json").exists():
            if running.poll() is not None or time.monotonic() > ends:
                sys.exit(f"the relay did not start:\n{(home / 'relay.log').read_text()}")
            time.sleep(0.1)
        url = json.loads((data / "relay.json").read_text())["url"]
        yield url, ssl.create_default_context(cafile=str(data / "relay-ca.crt"))
    finally:
        running.terminate()
        running.wait(TIMEOUT_S)


def _get(url: str, context: ssl.SSLContext) -> str:
    with urllib.request.urlopen(url, context=context, timeout=30) as answer:
        text: str = answer.read().decode()
        return text


def main(folder: Path) -> int:
    """Install the wheel of `folder` in both ways, and try each."""
    [wheel] = folder.resolve().glob("*.whl")
    for install in (by_pip, by_uv):
        with tempfile.TemporaryDirectory(prefix="wai-installed-") as name:
            home = Path(name)
            wai = install(wheel, home)
            try_command(wai, home)
            pages = list(wai.resolve().parent.parent.glob("share/man/man1/wai*.1"))
            assert pages, "the wheel brought no manual pages"
            print(f"{wheel.name} works, installed {install.__name__.replace('_', ' ')}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
