"""Downloads that survive anything: a cut at any byte, a kill -9, a full disk, a lying server.

A file grows as `<sha256>.partial` beside a sidecar that says what it is to become; a new process
hashes what is there and asks for the rest. Only a file whose SHA-256 is the one that the hub names
gets its real name. It decides nothing about whether a model may be downloaded (`supervisor`).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import anyio
import anyio.to_thread

from wai_protocol.errors import Fault, RequestError, StoreError, TransportError

from .catalogue import RemoteFile
from .transfer import Incoming, RetryLater, Transfer

KEPT_FREE_BYTES: Final = 1 << 30  # a disk that is filled to the brim breaks everything else on it
REHASH_BYTES: Final = 4 << 20
PROGRESS_EVERY_S: Final = 0.25  # a progress bar needs no more, and each one crosses the tunnel
RATE_WINDOW_S: Final = 10.0  # half-life of the rate shown: steady, yet it follows a change
MAX_IDLE_TRIES: Final = (
    10  # tries in a row that brought not one byte: at most 5 minutes of waiting between them
)
BACKOFF_FIRST_S, BACKOFF_MAX_S = 1.0, 60.0
PARTIAL_SUFFIX: Final = ".partial"
SIDECAR_SUFFIX: Final = ".partial.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is, over all its files. `eta_s` is None while nothing comes."""

    done_bytes: int
    total_bytes: int
    rate_bps: float
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class Clock:
    """Time and chance as inputs, so that tests need not wait."""

    now: Callable[[], float] = anyio.current_time
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    random: Callable[[], float] = random.random


class _Meter:
    """Counts bytes, and calls back now and then."""

    def __init__(self, total: int, clock: Clock, on_progress: Callable[[Progress], None]) -> None:
        self._total, self._clock, self._on_progress = total, clock, on_progress
        self.done = 0
        self._rate = 0.0
        self._told_at = clock.now()
        self._told_bytes = 0

    def set_done(self, done: int, *, measured: bool = True) -> None:
        """`measured` False: bytes that were here already say nothing about the rate."""
        if not measured:
            self._told_bytes += done - self.done
        self.done = done
        now = self._clock.now()
        elapsed = now - self._told_at
        if elapsed < PROGRESS_EVERY_S and done < self._total:
            return
        if elapsed > 0:
            newest = max(0.0, (done - self._told_bytes) / elapsed)
            share = 1.0 if not self._rate else min(1.0, elapsed / RATE_WINDOW_S)
            self._rate += (newest - self._rate) * share
        self._told_at, self._told_bytes = now, done
        left = self._total - done
        eta_s = left / self._rate if self._rate > 0 else None
        self._on_progress(Progress(done, self._total, self._rate, eta_s))


class Download:
    """Brings the `files` of one quantisation into `folder`. Run it once.

    `url_of` gives a file's address; `kept_free_bytes` is what must stay free on the disk.
    """

    def __init__(
        self,
        transfer: Transfer,
        url_of: Callable[[RemoteFile], str],
        files: Sequence[RemoteFile],
        folder: Path,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        *,
        clock: Clock | None = None,
        kept_free_bytes: int = KEPT_FREE_BYTES,
    ) -> None:
        self._transfer, self._url_of = transfer, url_of
        self._files, self._folder = files, folder
        self._clock = clock or Clock()
        self._kept_free = kept_free_bytes
        self._meter = _Meter(sum(f.size_bytes for f in files), self._clock, on_progress)

    async def run(self) -> list[Path]:
        """Download what is missing; the files' paths, in order.

        Raises `WaiError`: no room on the disk, the hub does not answer or refuses, or what came is
        not what was promised (then it is deleted).
        """
        try:
            await anyio.to_thread.run_sync(self._prepare)
            paths = []
            before = 0
            for file in self._files:
                paths.append(await self._bring(file, before))
                before += file.size_bytes
        except OSError as error:
            raise _disk_error(error, self._folder) from error
        return paths

    def _prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        missing = sum(
            max(0, file.size_bytes - _size(self._partial(file)))
            for file in self._files
            if _size(self._path(file)) != file.size_bytes
        )
        free = shutil.disk_usage(self._folder).free
        if missing and missing + self._kept_free > free:
            raise StoreError(
                f"the download needs {_gib(missing)} GiB more and {_gib(self._kept_free)} GiB must "
                f"stay free, but {self._folder} has {_gib(free)} GiB free; remove a model with "
                "`wai model remove`, or choose a smaller quantisation"
            )

    async def _bring(self, file: RemoteFile, before: int) -> Path:
        """One file, from wherever it stands to its real name."""
        path = self._path(file)
        if _size(path) == file.size_bytes and _said(path) == file.sha256:
            self._meter.set_done(before + file.size_bytes, measured=False)
            return path
        writer = await anyio.to_thread.run_sync(_Partial, self._partial(file), file)
        try:
            await self._fetch_rest(file, writer, before)
            await anyio.to_thread.run_sync(writer.finish, path)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(writer.close)
        return path

    async def _fetch_rest(self, file: RemoteFile, writer: _Partial, before: int) -> None:
        """Ask for what is missing until it is all here; back off while nothing comes."""
        idle_tries = 0
        self._meter.set_done(before + writer.size, measured=False)
        while writer.size < file.size_bytes:
            start = writer.size
            wait_s: float | None = None
            try:
                async with self._transfer.open(self._url_of(file), start) as body:
                    await self._take(file, writer, body, before)
                reason = "the connection ended early"
            except RetryLater as error:
                reason, wait_s = str(error), error.retry_after_s
            if writer.size >= file.size_bytes:
                return
            idle_tries = 0 if writer.size > start else idle_tries + 1
            if idle_tries >= MAX_IDLE_TRIES:
                raise TransportError(
                    f"{file.path} can't be downloaded: {reason}; what has come is kept, deploy "
                    "again to go on",
                    Fault.UPSTREAM_UNREACHABLE,
                )
            limit_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**idle_tries)
            await self._clock.sleep(min(BACKOFF_MAX_S, wait_s or self._clock.random() * limit_s))

    async def _take(self, file: RemoteFile, writer: _Partial, body: Incoming, before: int) -> None:
        if body.total is not None and body.total != file.size_bytes:
            await anyio.to_thread.run_sync(writer.discard)
            raise RequestError(
                f"{file.path} is {body.total} bytes on the hub, not {file.size_bytes} as it says; "
                "search again, it may have been replaced"
            )
        if body.offset != writer.size:  # the server ignored the range: it begins anew
            if body.offset != 0:
                raise RetryLater("the storage sent another part than was asked for")
            await anyio.to_thread.run_sync(writer.restart)
        while data := await body.read():
            if writer.size + len(data) > file.size_bytes:
                await anyio.to_thread.run_sync(writer.discard)
                raise RequestError(f"the hub sends more of {file.path} than it says there is")
            await anyio.to_thread.run_sync(writer.write, data)
            self._meter.set_done(before + writer.size)

    def _path(self, file: RemoteFile) -> Path:
        return self._folder / PurePosixPath(file.path).name

    def _partial(self, file: RemoteFile) -> Path:
        return self._folder / (file.sha256 + PARTIAL_SUFFIX)


class _Partial:
    """A file under way, its size and its running hash. Blocking: used in worker threads only."""

    def __init__(self, path: Path, file: RemoteFile) -> None:
        self._path, self._file_info = path, file
        self._sidecar = path.with_name(file.sha256 + SIDECAR_SUFFIX)
        about = {"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256}
        self._sidecar.write_text(json.dumps(about))
        self._file = path.open("ab+")
        self._hash = hashlib.sha256()
        self.size = 0
        if path.stat().st_size > file.size_bytes:
            self._file.truncate(0)
        self._file.seek(0)
        while piece := self._file.read(REHASH_BYTES):
            self._hash.update(piece)
            self.size += len(piece)

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def restart(self) -> None:
        """Drop what is here, to begin at the first byte."""
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.size = 0

    def discard(self) -> None:
        """Drop it for good: it can't become what it should."""
        self._file.close()
        self._path.unlink(missing_ok=True)
        self._sidecar.unlink(missing_ok=True)

    def finish(self, path: Path) -> None:
        """Verify, make it durable, give it its name. Raises `StoreError` on another hash."""
        if self._hash.hexdigest() != self._file_info.sha256:
            self.discard()
            raise StoreError(
                f"{self._file_info.path} arrived damaged (its SHA-256 is not the hub's) and was "
                "deleted; deploy it again, and if that fails too, choose another repository"
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        _sums(path).write_text(self._file_info.sha256 + "\n")
        self._path.replace(path)
        self._sidecar.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()


def _sums(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _said(path: Path) -> str:
    """What `path` was verified to hash to when it was downloaded; "" where we don't know."""
    try:
        return _sums(path).read_text().strip()
    except OSError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _disk_error(error: OSError, folder: Path) -> StoreError:
    return StoreError(
        f"{folder} can't be written ({error.strerror or error}); free some space or fix its "
        "rights, then deploy again: what has come is kept"
    )


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f}"
