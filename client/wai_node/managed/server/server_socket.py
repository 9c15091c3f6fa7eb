"""Where a managed server listens: a new unix socket for each start, in a folder that is ours alone.

Nobody else can listen there, before or after the server, and nothing has to be read from the
server's log to find it.
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

_NAME_BYTES: Final = 8  # of randomness; no path is used twice
_SUFFIX: Final = ".sock"  # by which llama-server tells a path from a host's name


class ServerSocket:
    """A path to listen at, not there yet. `remove` it when the server has ended."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made, with mode 0700. Where its path is too long for a socket, a new folder
        for temporary files takes its place. Raises `StoreError`."""
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
        """What `Origin.parse` reads."""
        return f"unix://{self.path}"

    def remove(self) -> None:
        """Leave nothing of it. Harmless when it was never made."""
        with suppress(OSError):  # a path that stays is never used again
            self.path.unlink(missing_ok=True)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def remove_left_sockets(folder: Path) -> None:
    """Remove what servers of an earlier run, which have ended, left in `folder`."""
    for path in folder.glob(f"*{_SUFFIX}"):
        with suppress(OSError):
            path.unlink()
