"""Unpack an engine's archive into a folder, within bounds. Blocking.

The archive's hash was checked, but its makers may have been deceived too, so nothing in it is
trusted: no path and no link leaves the folder, nothing is written through a link, no file is
replaced, devices and sparse files are refused, and number, sizes and memory are bounded. Owners and
special mode bits are not taken over.
"""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, Final

from wai_protocol.errors import Fault, RequestError, StoreError

MAX_ENTRIES: Final = 10_000  # the largest has some 100
MAX_UNPACKED_BYTES: Final = 8 << 30  # CUDA's libraries take 1.3 GB
MAX_PATH_CHARS: Final = 400
MAX_DEPTH: Final = 16
MAX_HEADER_BYTES: Final = 1 << 20  # long names; tarfile reads such a header into memory
COPY_BYTES: Final = 1 << 20
_LONG: Final = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class _Bounded:
    """A reader that refuses more than `MAX_UNPACKED_BYTES` in all."""

    def __init__(self, inner: gzip.GzipFile) -> None:
        self._inner = inner
        self._left = MAX_UNPACKED_BYTES

    def read(self, size: int = -1) -> bytes:
        data = self._inner.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _refuse(f"it holds more than {MAX_UNPACKED_BYTES >> 30} GiB")
        return data


class _Member(tarfile.TarInfo):
    """A member whose long names are bounded."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _LONG and self.size > MAX_HEADER_BYTES:
            raise _refuse("one of its headers is too long")
        member: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return member


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the `.tar.gz` file `archive` into `folder`, which exists.

    If all its files lie in one folder, their path begins below that. Raises `RequestError` for an
    archive that is broken or does what it must not, `StoreError` if the disk refuses.
    """
    try:
        with gzip.open(archive, "rb") as stream:
            # "r|": in one pass, so that nothing is decompressed twice
            reader: Any = _Bounded(stream)
            with tarfile.open(fileobj=reader, mode="r|", tarinfo=_Member) as tar:
                _Unpacker(folder).run(tar)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise _refuse("it is cut off or no .tar.gz file") from error
    except OSError as error:
        raise StoreError(
            f"{archive.name} can't be unpacked into {folder.parent} ({error.strerror or error});"
            " free some space there, and try again"
        ) from error


class _Unpacker:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._links: list[tuple[PurePosixPath, str]] = []
        self._made: set[PurePosixPath] = set()

    def run(self, tar: tarfile.TarFile) -> None:
        for count, member in enumerate(tar):
            if count >= MAX_ENTRIES:
                raise _refuse(f"it has more than {MAX_ENTRIES} entries")
            path = _safe(member.name)
            if member.isdir() or not path.parts:
                continue  # folders are made for their files
            if path in self._made:
                raise _refuse(f"{_shown(path)} is in it twice")
            self._made.add(path)
            if member.isreg() and not member.issparse():
                self._write(tar, member, path)
            elif member.issym() or member.islnk():
                self._links.append((path, _target(path, member)))
            else:
                raise _refuse(f"{_shown(path)} is neither a file nor a folder nor a link")
        self._make_links()
        self._raise_single()
        self._check_links()

    def _make_links(self) -> None:
        """Make the links, after all files, so that nothing is written through one."""
        links = {path for path, _ in self._links}
        for path in self._made:
            if not links.isdisjoint(path.parents):
                raise _refuse(f"the path {_shown(path)} leads through a link")
        for path, target in self._links:
            at = self._folder.joinpath(*path.parts)
            at.parent.mkdir(parents=True, exist_ok=True)
            at.symlink_to(target)

    def _check_links(self) -> None:
        """Refuse links that lead out of the folder, now that all are there."""
        top = self._folder.resolve()
        for folder, folders, names in os.walk(self._folder):
            for at in (Path(folder, name) for name in (*folders, *names)):
                if not at.is_symlink():
                    continue
                try:
                    end = at.resolve()
                except RuntimeError as error:
                    raise _refuse(f"the link {at.name!r} leads to itself") from error
                if not end.is_relative_to(top):
                    raise _refuse(f"the link {at.name!r} leaves its folder")

    def _write(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: PurePosixPath) -> None:
        at = self._folder.joinpath(*path.parts)
        at.parent.mkdir(parents=True, exist_ok=True)
        source = tar.extractfile(member)
        assert source is not None
        mode = 0o755 if member.mode & stat.S_IXUSR else 0o644
        descriptor = os.open(at, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        left = member.size
        with open(descriptor, "wb") as file:
            while left > 0:
                data = source.read(min(left, COPY_BYTES))
                if not data:
                    raise _refuse(f"{_shown(path)} is cut off")
                file.write(data)
                left -= len(data)

    def _raise_single(self) -> None:
        """Move what lies in the archive's only folder to the top."""
        tops = {path.parts[0] for path in self._made}
        if len(tops) != 1:
            return
        inner = self._folder / next(iter(tops))
        if inner.is_symlink() or not inner.is_dir():
            return
        aside = self._folder / f".{inner.name}.moved"  # a file in it may have the folder's name
        inner.rename(aside)
        for entry in list(aside.iterdir()):
            entry.rename(self._folder / entry.name)
        aside.rmdir()


def _safe(name: str) -> PurePosixPath:
    """Return a path of the archive, relative and without `..`. Raises `RequestError`."""
    path = PurePosixPath(name)
    parts = tuple(part for part in path.parts if part != ".")
    if (
        path.is_absolute()
        or ".." in parts
        or len(name) > MAX_PATH_CHARS
        or len(parts) > MAX_DEPTH
        or not name.isprintable()
        or "\\" in name
    ):
        raise _refuse(f"the path {_shown(path)} leaves its folder or is too long")
    return PurePosixPath(*parts)


def _target(path: PurePosixPath, member: tarfile.TarInfo) -> str:
    """Return where a link leads, relative to the link. Raises `RequestError`."""
    target = PurePosixPath(member.linkname)
    if member.islnk():  # a hard link's target is relative to the top
        target = PurePosixPath(os.path.relpath(_safe(member.linkname), path.parent))
    depth = len(path.parts) - 1
    for part in target.parts:
        depth += -1 if part == ".." else part != "."
        if depth < 0:
            raise _refuse(f"the link {_shown(path)} leaves its folder")
    if target.is_absolute() or len(member.linkname) > MAX_PATH_CHARS or not target.parts:
        raise _refuse(f"the link {_shown(path)} leaves its folder")
    return str(target)


def _shown(path: PurePosixPath) -> str:
    return repr(str(path)[:80])


def _refuse(what: str) -> RequestError:
    return RequestError(f"the archive is not unpacked: {what}", Fault.BAD_REQUEST)
