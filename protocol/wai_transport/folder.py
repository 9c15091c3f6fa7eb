"""A data folder: private, written crash-safely, and owned by one process at a time.

Made with mode 0700, so that nobody else on the machine reads what lies in it. The owner is who
holds the lock on its lock file; the lock belongs to the open file, not to the process, so that an
upgrade can hand it to its successor. What the files mean is the business of whoever keeps them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wai_protocol.errors import StoreError

FOLDER_MODE: Final = 0o700
SECRET_MODE: Final = 0o600
PUBLIC_MODE: Final = 0o644
DATA_FILES: Final = frozenset(
    {
        *("relay.db", "relay.key", "relay.lock", "admin.token"),
        *("node.key", "node.lock", "membership.json"),
        *("up-key.json", "relay.log", "node.log"),
    }
)
"""By any of these a folder is known as a relay's, a node's, or that of `wai up`."""
MAX_FILE_BYTES: Final = 1 << 20  # keys, certificates and tokens; more is not ours


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A folder that exists, belongs to us and is private. Make it with `open`."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> DataFolder:
        """Make or check the folder; one that others could look into is made private.

        Raises `StoreError` if it can't be ours alone.
        """
        try:
            path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            found = path.stat()
            if found.st_uid != os.geteuid():
                raise StoreError(f"the folder {path} belongs to another user; choose another one")
            mode = stat.S_IMODE(found.st_mode)
            # Where others can write, they could have put their files in place of ours.
            if mode & 0o022:
                raise StoreError(f"others can write to the folder {path}; choose one of its own")
            if mode & 0o077:
                _make_private(path)
        except OSError as error:
            raise StoreError(f"the folder {path} cannot be used: {error.strerror}") from error
        return cls(path)

    def read(self, name: str) -> bytes | None:
        """A file's content, None if there is none. Raises `StoreError`."""
        try:
            with (self.path / name).open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self.path / name} cannot be read: {error.strerror}") from error
        if len(content) > MAX_FILE_BYTES:
            raise StoreError(f"{self.path / name} is larger than {MAX_FILE_BYTES} bytes")
        return content

    def write(self, name: str, content: bytes, mode: int = SECRET_MODE) -> None:
        """Replace a file: after a crash there is the old one or the new one, whole.

        Raises `StoreError`.
        """
        temporary = self.path / f".{name}.{secrets.token_hex(4)}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            try:
                with open(descriptor, "wb") as file:
                    os.fchmod(file.fileno(), mode)  # whatever the umask took away or left
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self.path / name)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            self._sync()
        except OSError as error:
            raise StoreError(f"{self.path / name} cannot be written: {error.strerror}") from error

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / name).unlink()

    def _sync(self) -> None:
        """The rename itself must survive a crash too."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _make_private(path: Path) -> None:
    """Take the folder from others, unless it holds something else than a data folder's files: it
    may be /etc. Raises `StoreError`."""
    names = {entry.name for entry in path.iterdir()} - {"lost+found"}
    if names and not names & DATA_FILES:
        raise StoreError(
            f"others can look into the folder {path}, and it holds something else than wai's files;"
            f" choose an empty one, or take it from others with `chmod 700 {path}`"
        )
    path.chmod(FOLDER_MODE)


class FolderLock:
    """The right to use a data folder, held until `release` or the end of every holder's process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, folder: DataFolder, owner: str) -> FolderLock:
        """Take the lock of `owner` ("relay" or "node").

        Raises `StoreError` that names the process which has it.
        """
        path = folder.path / f"{owner}.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, SECRET_MODE)
        except OSError as error:
            raise StoreError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise StoreError(
                f"another {owner} (process {holder}) uses {folder.path}; stop it, or give this one"
                " another folder with --data"
            ) from None
        lock = cls(descriptor)
        lock.sign()
        return lock

    @classmethod
    def adopt(cls, descriptor: int) -> FolderLock:
        """Take over the lock that a predecessor passed down as this open file."""
        inheritable = False  # by our own children, unless we pass it in our turn
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ours already: changes nothing
            os.set_inheritable(descriptor, inheritable)
        except OSError as error:
            raise StoreError(f"the lock passed as file {descriptor} is not held: {error}") from None
        lock = cls(descriptor)
        lock.sign()
        return lock

    @staticmethod
    def holder(path: Path, owner: str) -> str | None:
        """The process, as it signed, that has the folder at `path`; None if nobody has it.

        Raises `StoreError`: it may not be looked at.
        """
        file = path / f"{owner}.lock"
        try:
            with file.open("rb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # until the file is closed
                except BlockingIOError:
                    return lock.read(20).decode("ascii", "replace").strip() or "unknown"
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{file} cannot be read: {error.strerror}") from error
        return None

    def fileno(self) -> int:
        """The open file, for `pass_fds` of a successor. It holds the lock for as long as it has
        this file open, even when we have released ours."""
        return self._descriptor

    def sign(self) -> None:
        """Write our process id into the file, for the message that another relay will show. On a
        full disk there is none: the lock holds all the same."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let go. A successor that was passed the file keeps the lock. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
