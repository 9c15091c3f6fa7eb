"""Read another user's data folder as root, without giving that user root's rights.

The owner of a folder can put links into it. If root followed them, it would read files that the
owner may not read, and send their content on. So root takes the owner's user id while it reads, and
reads only regular files that belong to the folder's owner.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from wai_protocol.errors import StoreError

NOBODY: Final = 65534
"""The group for a user id without an account: it has fewer rights than root's group."""


@contextlib.contextmanager
def as_owner(folder: Path) -> Iterator[None]:
    """Run a block as the user who owns `folder`. Changes nothing if this process is not root."""
    uid = _owner_of(folder) if os.geteuid() == 0 else 0
    if uid == 0:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(_group_of(uid))
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


def check_own(path: Path) -> os.stat_result | None:
    """Return the status of the file `path`, None if there is none.

    Raises `StoreError` unless it is a regular file without other hard links that belongs to root or
    to the owner of its folder.
    """
    try:
        found = path.lstat()
        _check(path, found)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    return found


def read_own(path: Path, limit_bytes: int) -> bytes | None:
    """Return the first `limit_bytes` of the file `path`, None if there is no such file.

    Raises `StoreError` as `check_own` does, and if the file cannot be read.
    """
    try:
        # O_NONBLOCK, because opening a FIFO would wait for a writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(path, flags), "rb") as file:
            _check(path, os.fstat(file.fileno()))
            return file.read(limit_bytes)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_own(path, "is a link") from error
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error


def _check(path: Path, found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise _not_own(path, "is a link")
    if not stat.S_ISREG(found.st_mode):
        raise _not_own(path, "is not a regular file")
    if found.st_nlink > 1:
        raise _not_own(path, "has another name elsewhere (a hard link)")
    if found.st_uid not in (0, path.parent.stat().st_uid):
        raise _not_own(path, "belongs to another user than its folder")


def _not_own(path: Path, what: str) -> StoreError:
    return StoreError(f"{path} {what}, and is not read; put the file itself there")


def _owner_of(folder: Path) -> int:
    """Return the user who controls what `folder` is: the owner of a link, unless that is root."""
    try:
        return folder.lstat().st_uid or folder.stat().st_uid
    except OSError:
        return 0


def _group_of(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return NOBODY
