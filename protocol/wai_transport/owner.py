"""Reading somebody else's data folder as root, without lending its owner root's rights.

Whoever owns a folder can put links in it. Root that followed them would read, and send on, what the
owner may not read. So root becomes the folder's owner for as long as it looks into it, and reads
regular files only, that are the folder's own.
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
"""The group of who has none of its own: better than root's."""


@contextlib.contextmanager
def as_owner(folder: Path) -> Iterator[None]:
    """As root, be the user whom `folder` belongs to until the end; else change nothing."""
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
    """What `path` is, None if there is nothing. Raises `StoreError` if it is not a regular file of
    its folder's owner with this one name."""
    try:
        found = path.lstat()
        _check(path, found)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    return found


def read_own(path: Path, limit_bytes: int) -> bytes | None:
    """The content of `path`, at most `limit_bytes` of it; None if there is no such file.

    Raises `StoreError` as `check_own` does, and if it can't be read.
    """
    try:
        # Not blocking: opening a FIFO would wait for its writer.
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
    """Whoever can choose what is at `folder`: of a link its maker, unless that is root."""
    try:
        return folder.lstat().st_uid or folder.stat().st_uid
    except OSError:
        return 0


def _group_of(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return NOBODY
