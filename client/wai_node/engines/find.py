"""Find the engines on this machine, and the one that a node runs its models on. Blocking.

In this order: the one that the node's owner configured; the one that was chosen (`store`); a
llama-server on PATH; Homebrew's, since a service's PATH lacks it; the newest one that was
installed; xllamacpp's in a process of its own.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from typing import Final

import msgspec

from wai_protocol.errors import Fault, TransportError

from .store import EngineStore

NAMES: Final = ("llama-server", "llama-server-vulkan", "llama-server-cuda")
HOMEBREW: Final = ("/opt/homebrew/bin", "/usr/local/bin", "/home/linuxbrew/.linuxbrew/bin")
CONFIGURED, ON_PATH, OF_HOMEBREW, PACKAGE = "configured", "path", "homebrew", "xllamacpp"
_PACKAGE_MODULE: Final = "wai_node.managed.server.inprocess_server"
NONE_HERE: Final = (
    "no llama-server is on this node: run `wai node engine install` there, or deploy with"
    " `--install-engine`"
)


class Engine(msgspec.Struct, frozen=True):
    """A way to run llama.cpp's server: `argv` to which its flags are appended.

    `name`: an installed engine's, else where it was found. `probed`: it knows `--version` and
    `--list-devices`.
    """

    name: str
    argv: tuple[str, ...]
    installed: bool = False
    probed: bool = True


def engines(store: EngineStore, configured: str | None = None) -> Iterator[Engine]:
    """Yield what is there, in the order of the module's text; installed ones newest first."""
    if configured and (found := shutil.which(configured)):
        yield Engine(CONFIGURED, (found,))
    for name in store.names():
        program = store.program(name)
        if program is not None:
            yield Engine(name, (str(program.absolute()),), installed=True)
    seen = set()
    for source, path in ((ON_PATH, None), (OF_HOMEBREW, ":".join(HOMEBREW))):
        for name in NAMES:
            found = shutil.which(name, path=path)
            if found is not None and found not in seen:
                seen.add(found)
                yield Engine(source, (found,))
                break
    if importlib.util.find_spec("xllamacpp") is not None:
        # -P: no module is imported from the working directory
        yield Engine(PACKAGE, (sys.executable, "-P", "-m", _PACKAGE_MODULE), probed=False)


def find_engine(store: EngineStore, configured: str | None = None) -> Engine:
    """Return the engine to run. Raises `TransportError`, which says what to do."""
    there = {engine.name: engine for engine in reversed(list(engines(store, configured)))}
    if configured:
        if CONFIGURED not in there:
            raise TransportError(
                f"the configured llama-server {configured!r} does not exist or is not executable",
                Fault.NOT_FOUND,
            )
        return there[CONFIGURED]
    choice = store.choice()
    installed = [name for name in store.names() if name not in choice.refused]
    for name in (choice.used, ON_PATH, OF_HOMEBREW, *installed, PACKAGE):
        if name in there:
            return there[name]
    raise TransportError(NONE_HERE, Fault.NOT_FOUND)
