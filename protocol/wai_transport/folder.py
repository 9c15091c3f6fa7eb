"""A data folder: private, written so that a crash does no harm, and used by one process at a time.

It is made with mode 0700, so that no other user of the machine can read it. The process that holds
the lock on the folder's lock file owns it. The lock belongs to the open file description, not to
the process, so that an upgrade can pass it to its successor.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from pathlib import Path
from typing import Final

import msgspec

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
"""Any of these files identifies a folder as the data folder of a relay, a node or `wai up`."""
MAX_FILE_BYTES: Final = 1 << 20  # more than any key, certificate or token has


class DataFolder(msgspec.Struct, frozen=True):
    """A folder that exists, belongs to this user and is private. Make it with `open`."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> DataFolder:
        """Create or check the folder. A folder that others could read is made private.

        Raises `StoreError` if it cannot be made private to this user.
        """
        try:
            path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            found = path.stat()
            if found.st_uid != os.geteuid():
                raise StoreError(f"the folder {path} belongs to another user; choose another one")
            mode = stat.S_IMODE(found.st_mode)
            # Others who can write could already have replaced its files by their own.
            if mode & 0o022:
                raise StoreError(f"others can write to the folder {path}; choose one of its own")
            if mode & 0o077:
                _make_private(path)
        except OSError as error:
            raise StoreError(f"the folder {path} cannot be used: {error.strerror}") from error
        return cls(path)

    def read(self, name: str) -> bytes | None:
        """Return a file's content, None if there is no such file. Raises `StoreError`."""
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
        """Replace a file atomically: after a crash, the old or the new one is there, complete.

        Raises `StoreError`.
        """
        temporary = self.path / f".{name}.{secrets.token_hex(4)}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            try:
                with open(descriptor, "wb") as file:
                    os.fchmod(file.fileno(), mode)  # regardless of the umask
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
        """Sync the folder, so that a rename in it survives a crash too."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _make_private(path: Path) -> None:
    """Remove the rights of other users, if the folder is empty or a data folder.

    Another folder, for example /etc, is not changed. Raises `StoreError` then.
    """
    names = {entry.name for entry in path.iterdir()} - {"lost+found"}
    if names and not names & DATA_FILES:
        raise StoreError(
            f"others can read the folder {path}, and it holds other files than wai's; choose an "
            f"empty one, or make it private with `chmod 700 {path}`"
        )
    path.chmod(FOLDER_MODE)


class FolderLock:
    """The lock of a data folder.

    It is held until `release`, or until every process that has the lock file open has ended.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, folder: DataFolder, owner: str, busy: str | None = None) -> FolderLock:
        """Take the lock for `owner`, such as "relay" or "node".

        Raises `StoreError` if it is taken: it says `busy`, or names the process that holds it.
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
                busy
                or f"another {owner} (process {holder}) uses {folder.path}; stop it, or give this"
                " one another folder with --data"
            ) from None
        lock = cls(descriptor)
        lock.sign()
        return lock

    @classmethod
    def adopt(cls, descriptor: int) -> FolderLock:
        """Take over the lock that a predecessor passed on as this open file.

        Raises `StoreError` if it is not held.
        """
        inheritable = False  # not by children of this process, unless they are passed it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no change if it is held
            os.set_inheritable(descriptor, inheritable)
        except OSError as error:
            raise StoreError(f"the lock passed as file {descriptor} is not held: {error}") from None
        lock = cls(descriptor)
        lock.sign()
        return lock

    @staticmethod
    def holder(path: Path, owner: str) -> str | None:
        """Return the id, as text, of the process that uses the folder at `path`; None if none does.

        Raises `StoreError` if the lock file cannot be read.
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
        """Return the open file, for `pass_fds` of a successor.

        The successor holds the lock for as long as it has the file open, even after `release` here.
        """
        return self._descriptor

    def sign(self) -> None:
        """Write this process's id into the file, for the error message of another process.

        A full disk is ignored: the lock is held even without the id.
        """
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Release the lock; a successor that was passed the file keeps it. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
