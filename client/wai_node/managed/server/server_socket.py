"""The unix socket that a managed server listens at: a new path for each start, in a private folder.

No other user can listen there before or after the server, and the address need not be read from
the server's log.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from wai_protocol.errors import StoreError
from wai_transport.folder import DataFolder
from wai_transport.origin import MAX_SOCKET_PATH_BYTES

_NAME_BYTES: Final = 8  # random, so that no path is used twice
_SUFFIX: Final = ".sock"  # llama-server takes a host that ends so for a path


class ServerSocket:
    """A path to listen at, where no file exists yet. Call `remove` when the server has ended."""

    def __init__(self, folder: Path) -> None:
        """Make `folder` with mode 0700; if its path is too long for a socket, use a new temporary
        folder instead. Raises `StoreError`."""
        name = secrets.token_hex(_NAME_BYTES) + _SUFFIX
        self._temporary: Path | None = None
        self.path = folder.absolute() / name
        if len(str(self.path).encode()) <= MAX_SOCKET_PATH_BYTES:
            DataFolder.open(folder)
            return
        try:
            self._temporary = Path(tempfile.mkdtemp(prefix="wai-"))  # its mode is 0700
        except OSError as error:
            raise StoreError(f"no folder for a socket can be made: {error.strerror}") from error
        self.path = self._temporary / name

    @property
    def url(self) -> str:
        """The URL, in the form that `Origin.parse` reads."""
        return f"unix://{self.path}"

    def remove(self) -> None:
        """Delete the socket and a temporary folder, if they exist."""
        with suppress(OSError):  # a path that stays is never used again
            self.path.unlink(missing_ok=True)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def remove_left_sockets(folder: Path) -> None:
    """Remove the sockets in `folder` that servers of an earlier run, now ended, left there."""
    for path in folder.glob(f"*{_SUFFIX}"):
        with suppress(OSError):
            path.unlink()
