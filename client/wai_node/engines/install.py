"""Install an engine: download its archives, verify, unpack, see that it runs, put it in its place.

What is there before is left alone until the new one has run. An install that is cut off leaves the
parts of its download, which the next one continues, and a folder that the next one deletes.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from wai_node.models.catalogue import RemoteFile
from wai_node.models.download import MAX_IDLE_TRIES, Clock, Download, Progress, Words
from wai_node.models.transfer import Transfer
from wai_protocol.errors import RequestError, StoreError
from wai_transport.http_proxy import DIRECT, ProxySettings

from .find import Engine
from .manifest import (
    MAX_ARCHIVE_BYTES,
    MAX_MANIFEST_BYTES,
    Choice,
    Manifest,
    read_manifest,
    read_manifest_file,
)
from .probe import version_of
from .store import PROGRAM, About, EngineStore

KEPT_FREE_BYTES: Final = 256 << 20  # a full disk would break everything else on it
# What is unpacked, by the archives' size: b10434 for Vulkan takes 72 MB from 28.
UNPACKED_TIMES: Final = 4
HASH_BYTES: Final = 1 << 20
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# llama-b11429-bin-ubuntu-vulkan-x64.tar.gz
_OFFICIAL: Final = re.compile(r"llama-(b\d+)-bin-(?:ubuntu|macos|linux)-(?:(.+?)-)?[^-]+\.tar\.gz")
_WORDS: Final = Words(
    server="the release server",
    room="free some space there",
    again="install it again",
    otherwise="choose another version, or use the manifest's own server without a mirror",
    unreached="without internet name a mirror by WAI_ENGINE_MIRROR, or install an archive that you"
    " have by `wai node engine install --archive FILE --sha256 HASH`",
)


def _silent(progress: Progress) -> None:
    """Report nothing."""


async def install_build(
    store: EngineStore,
    choice: Choice,
    on_progress: Callable[[Progress], None] = _silent,
    *,
    proxies: ProxySettings = DIRECT,
    clock: Clock | None = None,
    kept_free_bytes: int | None = None,
    on_wait: Callable[[str, float], None] = lambda reason, wait_s: None,
    first_tries: int = MAX_IDLE_TRIES,
) -> Engine:
    """Install a build of the manifest, unless it is there already. Raises `WaiError`.

    `on_wait` is told why a try failed, and the seconds until the next. `first_tries`: after so many
    without a byte the server counts as unreachable.
    """
    files = [RemoteFile(file.name, file.size_bytes, file.sha256) for file in choice.build.files]
    with store.installing():
        about = store.about(choice.name)
        if about is None or about.sources != tuple(file.sha256 for file in files):
            transfer = Transfer(choice.url, None, proxies=proxies, server=_WORDS.server)
            download = Download(
                transfer,
                lambda file: choice.url + file.path,
                files,
                store.downloads(choice.name),
                on_progress,
                clock=clock,
                kept_free_bytes=_kept_free(choice) if kept_free_bytes is None else kept_free_bytes,
                words=_WORDS,
                on_wait=on_wait,
                first_tries=first_tries,
            )
            archives = await download.run()
            sources = tuple(file.sha256 for file in files)
            await anyio.to_thread.run_sync(_put, store, choice.name, archives, sources)
    return engine_of(store, choice.name)


def _kept_free(choice: Choice) -> int:
    """Return what must be free beside the download: for what is unpacked, and some more."""
    return KEPT_FREE_BYTES + UNPACKED_TIMES * choice.build.size_bytes


def install_archive(
    store: EngineStore, archive: Path, sha256: str, name: str | None = None
) -> Engine:
    """Install the engine in a `.tar.gz` file on this machine. Blocking. Raises `WaiError`."""
    if not _SHA256.fullmatch(sha256.lower()):
        raise RequestError(
            "the SHA-256 of the archive is 64 digits 0-9 and a-f, as `sha256sum` prints them"
        )
    found = name or name_of(archive.name)
    if not _NAME.fullmatch(found):
        raise RequestError(f"{found[:80]!r} is no name for an engine; give one by --name")
    digest = _digest(archive)
    if digest != sha256.lower():
        raise StoreError(f"{archive} is damaged or another file: its SHA-256 is {digest}")
    with store.installing():
        _put(store, found, [archive], (digest,))
    return engine_of(store, found)


def engine_of(store: EngineStore, name: str) -> Engine:
    """Return an installed engine. Raises `RequestError`."""
    program = store.program(name)
    if program is None:
        known = ", ".join(store.names()) or "none"
        raise RequestError(f"no engine {name[:64]!r} is installed here; installed: {known}")
    return Engine(name, (str(program.absolute()),), installed=True)


def name_of(file: str) -> str:
    """Return what to call the engine in an archive, by the archive's name."""
    official = _OFFICIAL.fullmatch(file)
    if official:
        return f"{official[1]}-{official[2] or 'cpu'}"
    return file.removesuffix(".tar.gz").removesuffix(".tgz")


async def fetch_manifest(source: str, *, proxies: ProxySettings = DIRECT) -> Manifest:
    """Return the manifest in a file, or at an https URL. Raises `WaiError`.

    Who names it trusts where it comes from; over http only this machine is believed.
    """
    if not source.startswith(("http://", "https://")):
        return await anyio.to_thread.run_sync(read_manifest_file, Path(source))
    if source.startswith("http://") and not re.match(
        r"http://(127\.|localhost[:/]|\[::1\])", source
    ):
        raise RequestError("a manifest is fetched by https: over http anyone could change it")
    transfer = Transfer(source, None, proxies=proxies, server=f"the server of {source[:100]}")
    text = b""
    async with transfer.open(source) as body:
        while data := await body.read():
            text += data
            if len(text) > MAX_MANIFEST_BYTES:
                break  # `read_manifest` refuses it
    return read_manifest(text, source)


def _put(store: EngineStore, name: str, archives: list[Path], sources: tuple[str, ...]) -> None:
    """Unpack the archives, see that the engine runs, and put it in its place."""
    from .unpack import unpack  # tarfile is loaded with it

    fresh = store.fresh()
    try:
        for archive in archives:
            unpack(archive, fresh)
        found = sorted(
            (path for path in fresh.rglob(PROGRAM) if path.is_file()),
            key=lambda path: len(path.parts),
        )
        if not found:
            raise RequestError(f"the archive holds no program {PROGRAM}; choose another one")
        found[0].chmod(0o755)
        version = version_of((str(found[0].absolute()),))
        store.put(name, fresh, About(version, str(found[0].relative_to(fresh)), sources))
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # gone already if all went well


def _digest(archive: Path) -> str:
    digest, size = hashlib.sha256(), 0
    try:
        with archive.open("rb") as file:
            while data := file.read(HASH_BYTES):
                digest.update(data)
                size += len(data)
                if size > MAX_ARCHIVE_BYTES:
                    raise RequestError(f"{archive} is larger than {MAX_ARCHIVE_BYTES >> 30} GiB")
    except OSError as error:
        raise RequestError(f"{archive} can't be read: {error.strerror}") from error
    return digest.hexdigest()
