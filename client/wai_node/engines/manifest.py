"""The manifest of engines: releases of llama.cpp, and for each build its files with their hashes.

Pure but for `shipped`. A file without a SHA-256 can't be listed: what is installed is run, so it
must be what whoever wrote the manifest has seen. `make_manifest` writes one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import msgspec

from wai_protocol.errors import RequestError
from wai_protocol.foreign_json import ForeignJsonError, read_json

FORMAT: Final = 1
MAX_MANIFEST_BYTES: Final = 1 << 20  # the one that is shipped has 4 KB
MAX_ARCHIVE_BYTES: Final = 4 << 30  # the largest, with CUDA's libraries, has 0.6 GB

_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_WORD: Final = r"^[a-z0-9_]{1,16}$"


class ArchiveFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One archive of a build."""

    name: Annotated[str, msgspec.Meta(pattern=_NAME)]
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_ARCHIVE_BYTES)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


class Build(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One build of a release: `system` and `machine` as `platform` names them in lower case.

    `backend`: cuda13, cuda12, rocm, vulkan, metal or cpu. The files are unpacked into one folder.
    """

    system: Annotated[str, msgspec.Meta(pattern=_WORD)]
    machine: Annotated[str, msgspec.Meta(pattern=_WORD)]
    backend: Annotated[str, msgspec.Meta(pattern=_WORD)]
    files: Annotated[tuple[ArchiveFile, ...], msgspec.Meta(min_length=1, max_length=8)]

    @property
    def size_bytes(self) -> int:
        """What there is to download."""
        return sum(file.size_bytes for file in self.files)


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One release; its files lie below `url`, which ends in a slash."""

    version: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._]{0,31}$")]
    url: Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s]{1,500}/$")]
    builds: Annotated[tuple[Build, ...], msgspec.Meta(max_length=64)]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Releases, newest first."""

    format: int
    releases: Annotated[tuple[Release, ...], msgspec.Meta(max_length=64)]


class Choice(msgspec.Struct, frozen=True):
    """A build that was chosen, and where its files are."""

    version: str
    build: Build
    url: str

    @property
    def name(self) -> str:
        """What the engine is called once it is installed, as `b11429-vulkan`."""
        return f"{self.version}-{self.build.backend}"


def read_manifest(text: bytes, source: str) -> Manifest:
    """Parse a manifest. Raises `RequestError`, which names `source`."""
    try:
        found = read_json(text, Manifest, source, limit_bytes=MAX_MANIFEST_BYTES)
    except ForeignJsonError as error:
        raise RequestError(f"{source} is no manifest of engines: {error.reason}") from error
    if found.format != FORMAT:
        raise RequestError(
            f"{source} has the format {found.format}, which this version of wai does not know"
        )
    return found


def read_manifest_file(path: Path) -> Manifest:
    """Read a manifest from the disk. Blocking. Raises `RequestError`."""
    try:
        with path.open("rb") as file:
            return read_manifest(file.read(MAX_MANIFEST_BYTES + 1), str(path))
    except OSError as error:
        raise RequestError(f"{path} can't be read: {error.strerror}") from error


def shipped() -> Manifest:
    """Return the manifest that comes with this software."""
    text = Path(__file__).with_name("manifest.json").read_bytes()
    return read_manifest(text, "the shipped manifest")


def choose(
    manifest: Manifest,
    system: str,
    machine: str,
    backends: tuple[str, ...],
    version: str | None = None,
    mirror: str | None = None,
) -> Choice:
    """Return the build for the first of `backends` that a release has, of the newest release, or
    of `version`.

    `mirror`: a URL below which each release's files lie in a folder that is named as its version.
    Raises `RequestError`, which says what there is.
    """
    releases = [r for r in manifest.releases if version in (None, r.version)]
    if not releases:
        known = ", ".join(r.version for r in manifest.releases) or "none"
        raise RequestError(f"the manifest has no version {version!r}; it has: {known}")
    there: set[str] = set()
    for release in releases:
        builds = {
            build.backend: build
            for build in release.builds
            if (build.system, build.machine) == (system, machine)
        }
        there.update(builds)
        for backend in backends:
            if backend in builds:
                url = release.url if mirror is None else f"{mirror.rstrip('/')}/{release.version}/"
                return Choice(release.version, builds[backend], url)
    has = f"has only: {', '.join(sorted(there))}" if there else "has none for such machines"
    raise RequestError(
        f"the manifest has no build for {system} on {machine} with {' or '.join(backends)}; it"
        f" {has}. Give another one with --archive FILE --sha256 HASH, or --manifest"
    )


def version_key(name: str) -> tuple[int, str]:
    """Return what sorts names of engines by their build number, as in `b11429-vulkan`."""
    number = re.match(r"b(\d{1,9})", name)
    return (int(number[1]) if number else -1, name)
