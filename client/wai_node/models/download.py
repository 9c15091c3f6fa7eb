"""Download model files; resume after lost connections, a kill -9 or a full disk; verify them.

A file grows as `<sha256>.partial`, beside a sidecar that names the final file. A new process hashes
what is there and requests the rest. A file gets its final name only if its SHA-256 is the one that
the hub states. Whether a model may be downloaded is the `supervisor`'s decision.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from wai_protocol.errors import Fault, RequestError, StoreError, TransportError

from .catalogue import RemoteFile
from .transfer import Incoming, RetryLater, Transfer

KEPT_FREE_BYTES: Final = 1 << 30  # a full disk would break everything else on it
REHASH_BYTES: Final = 4 << 20
PROGRESS_EVERY_S: Final = 0.25  # a progress bar needs no more, and each one crosses the tunnel
RATE_WINDOW_S: Final = 10.0  # half-life of the average rate
MAX_IDLE_TRIES: Final = 10  # consecutive attempts without a byte; about 5 minutes of waits in all
# Of a server that never answered, while somebody waits: under a minute where packets are dropped.
WATCHED_TRIES: Final = 3
BACKOFF_FIRST_S, BACKOFF_MAX_S = 1.0, 60.0
PARTIAL_SUFFIX: Final = ".partial"
SIDECAR_SUFFIX: Final = ".partial.json"


class Progress(msgspec.Struct, frozen=True):
    """The progress of a download over all its files. `eta_s` is None while nothing is received."""

    done_bytes: int
    total_bytes: int
    rate_bps: float
    eta_s: float | None


class Clock(msgspec.Struct, frozen=True):
    """Time, sleep and randomness, replaced in tests."""

    now: Callable[[], float] = anyio.current_time
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    random: Callable[[], float] = random.random


class Words(msgspec.Struct, frozen=True):
    """What errors call the server, and what they say to do: about room on the disk, `again`, where
    that does not help, and `unreached`: if the server never answered."""

    server: str = "the hub"
    room: str = "remove a model with `wai model remove`, or choose a smaller quantisation"
    again: str = "deploy it again"
    otherwise: str = "choose another repository"
    unreached: str = "see that the node reaches the hub, or name a mirror by HF_ENDPOINT"


class Meter:
    """Counts bytes and reports progress at limited intervals."""

    def __init__(self, total: int, clock: Clock, on_progress: Callable[[Progress], None]) -> None:
        self._total, self._clock, self._on_progress = total, clock, on_progress
        self.done = 0
        self._rate = 0.0
        self._told_at = clock.now()
        self._told_bytes = 0

    def set_total(self, total: int) -> None:
        """Set how many bytes there are in all, where that is learned on the way."""
        self._total = total

    def set_done(self, done: int, *, measured: bool = True) -> None:
        """Set the count. `measured` False: the bytes were present before, so the rate is kept."""
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
    """Downloads the `files` of one quantisation into `folder`. Call `run` once.

    `url_of` returns a file's URL; `kept_free_bytes` must stay free on the disk. `on_wait` is told
    why a try failed, and the seconds until the next. `first_tries`: one of so many must bring a
    byte, else the server counts as unreachable.
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
        words: Words | None = None,
        on_wait: Callable[[str, float], None] = lambda reason, wait_s: None,
        first_tries: int = MAX_IDLE_TRIES,
    ) -> None:
        self._words = words or Words()
        self._on_wait, self._first_tries = on_wait, first_tries
        self._transfer, self._url_of = transfer, url_of
        self._files, self._folder = files, folder
        self._clock = clock or Clock()
        self._kept_free = kept_free_bytes
        self._meter = Meter(sum(f.size_bytes for f in files), self._clock, on_progress)

    async def run(self) -> list[Path]:
        """Download what is missing and return the files' paths, in order.

        Raises `WaiError`: no room on the disk, the hub does not answer or refuses, or a file's
        hash is wrong (then it is deleted).
        """
        try:
            await anyio.to_thread.run_sync(self._prepare)
            paths = []
            before = 0
            for file in self._files:
                paths.append(await self._download_file(file, before))
                before += file.size_bytes
        except OSError as error:
            raise _disk_error(error, self._folder, self._words) from error
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
                f"stay free, but {self._folder} has {_gib(free)} GiB free; "
                f"{self._words.room}"
            )

    async def _download_file(self, file: RemoteFile, before: int) -> Path:
        """Complete one file from its present state; `before` counts the bytes of earlier files."""
        path = self._path(file)
        if _size(path) == file.size_bytes and _recorded_sha256(path) == file.sha256:
            self._meter.set_done(before + file.size_bytes, measured=False)
            return path
        writer = await anyio.to_thread.run_sync(_Partial, self._partial(file), file)
        try:
            await self._fetch_rest(file, writer, before)
            await anyio.to_thread.run_sync(writer.finish, path, self._words)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(writer.close)
        return path

    async def _fetch_rest(self, file: RemoteFile, writer: _Partial, before: int) -> None:
        """Request the missing bytes until all are received; back off while nothing comes."""
        idle_tries = 0
        self._meter.set_done(before + writer.size, measured=False)
        while writer.size < file.size_bytes:
            start = writer.size
            wait_s: float | None = None
            try:
                async with self._transfer.open(self._url_of(file), start) as body:
                    await self._receive(file, writer, body, before)
                reason = "the connection ended early"
            except RetryLater as error:
                reason, wait_s = str(error), error.retry_after_s
            if writer.size >= file.size_bytes:
                return
            idle_tries = 0 if writer.size > start else idle_tries + 1
            if idle_tries >= (self._first_tries if writer.size == 0 else MAX_IDLE_TRIES):
                kept = f"the part that was received is kept, {self._words.again} to go on"
                raise TransportError(
                    f"{file.path} can't be downloaded: {reason}; "
                    f"{kept if writer.size else self._words.unreached}",
                    Fault.UPSTREAM_UNREACHABLE,
                )
            limit_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2**idle_tries)
            wait_s = min(BACKOFF_MAX_S, wait_s or self._clock.random() * limit_s)
            self._on_wait(reason, wait_s)
            await self._clock.sleep(wait_s)

    async def _receive(
        self, file: RemoteFile, writer: _Partial, body: Incoming, before: int
    ) -> None:
        if body.total is not None and body.total != file.size_bytes:
            await anyio.to_thread.run_sync(writer.discard)
            words = self._words
            raise RequestError(
                f"{file.path} has {body.total} bytes at {words.server}, not {file.size_bytes} as "
                f"its listing says; {words.again}, it may have been replaced"
            )
        if body.offset != writer.size:  # the server ignored the range and sends the whole file
            if body.offset != 0:
                raise RetryLater("the storage sent another part than was asked for")
            await anyio.to_thread.run_sync(writer.restart)
        while data := await body.read():
            if writer.size + len(data) > file.size_bytes:
                await anyio.to_thread.run_sync(writer.discard)
                raise RequestError(
                    f"{self._words.server} sends more of {file.path} than it says there is"
                )
            await anyio.to_thread.run_sync(writer.write, data)
            self._meter.set_done(before + writer.size)

    def _path(self, file: RemoteFile) -> Path:
        return self._folder / PurePosixPath(file.path).name

    def _partial(self, file: RemoteFile) -> Path:
        return self._folder / (file.sha256 + PARTIAL_SUFFIX)


class _Partial:
    """A partial file with its size and running hash. Blocking: used in worker threads only."""

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
        """Truncate the file, to start again at the first byte."""
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.size = 0

    def discard(self) -> None:
        """Delete the file and its sidecar: its content is wrong."""
        self._file.close()
        self._path.unlink(missing_ok=True)
        self._sidecar.unlink(missing_ok=True)

    def finish(self, path: Path, words: Words) -> None:
        """Verify the hash, sync, and rename to `path`. Raises `StoreError` on a wrong hash."""
        if self._hash.hexdigest() != self._file_info.sha256:
            self.discard()
            raise StoreError(
                f"{self._file_info.path} arrived damaged (its SHA-256 is not the one that "
                f"{words.server} states) and was deleted; {words.again}, and if that fails too, "
                f"{words.otherwise}"
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        _checksum_path(path).write_text(self._file_info.sha256 + "\n")
        self._path.replace(path)
        self._sidecar.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _recorded_sha256(path: Path) -> str:
    """Return the SHA-256 that was verified when `path` was downloaded; "" if unknown."""
    try:
        return _checksum_path(path).read_text().strip()
    except OSError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _disk_error(error: OSError, folder: Path, words: Words) -> StoreError:
    return StoreError(
        f"{folder} can't be written ({error.strerror or error}); free some space or fix its "
        f"permissions, then {words.again}: the part that was received is kept"
    )


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f}"
