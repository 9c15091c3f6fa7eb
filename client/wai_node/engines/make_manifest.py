"""Make the manifest's entry for a release of llama.cpp: `python -m wai_node.engines.make_manifest`.

For maintainers. It reads the release from GitHub's API, downloads each archive that a node could
use, hashes it, and compares that with the digest that the API states. It prints a manifest with
the release before the ones of the file given by `--into`. Who runs it vouches for what it prints.

    python -m wai_node.engines.make_manifest b11429 --into client/wai_node/engines/manifest.json
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import re
import sys
from pathlib import Path
from typing import Final

import msgspec

from wai_node.models.transfer import Transfer
from wai_protocol.errors import RequestError, TransportError, WaiError
from wai_protocol.foreign_json import ForeignJsonError, read_json
from wai_transport.http_proxy import DIRECT, ProxySettings

from .manifest import (
    FORMAT,
    MAX_ARCHIVE_BYTES,
    ArchiveFile,
    Build,
    Manifest,
    Release,
    read_manifest,
    read_manifest_file,
)

API: Final = "https://api.github.com/repos/ggml-org/llama.cpp/releases/tags"
MAX_RELEASE_BYTES: Final = 4 << 20
# What follows `llama-VERSION-bin-` in an archive's name: (system, machine, backend).
_KINDS: Final = (
    (re.compile(r"ubuntu-x64"), ("linux", "x86_64", "cpu")),
    (re.compile(r"ubuntu-arm64"), ("linux", "aarch64", "cpu")),
    (re.compile(r"ubuntu-vulkan-x64"), ("linux", "x86_64", "vulkan")),
    (re.compile(r"ubuntu-vulkan-arm64"), ("linux", "aarch64", "vulkan")),
    (re.compile(r"ubuntu-rocm-[\d.]+-x64"), ("linux", "x86_64", "rocm")),
    (re.compile(r"ubuntu-cuda-12\.\d+-x64"), ("linux", "x86_64", "cuda12")),
    (re.compile(r"ubuntu-cuda-13\.\d+-x64"), ("linux", "x86_64", "cuda13")),
    (re.compile(r"ubuntu-cuda-13\.\d+-arm64"), ("linux", "aarch64", "cuda13")),
    (re.compile(r"macos-arm64"), ("darwin", "arm64", "metal")),
    (re.compile(r"macos-x64"), ("darwin", "x86_64", "cpu")),
)


class Asset(msgspec.Struct, frozen=True):
    """A file of a release, as the API describes it."""

    name: str
    size: int
    browser_download_url: str
    digest: str | None = None


class ApiRelease(msgspec.Struct, frozen=True):
    """A release, as the API describes it."""

    tag_name: str
    assets: tuple[Asset, ...]


async def make_release(version: str, api: str = API, *, proxies: ProxySettings = DIRECT) -> Release:
    """Return a release with the hashes of the archives as they are now. Raises `WaiError`."""
    text = await _read(f"{api}/{version}", MAX_RELEASE_BYTES, proxies)
    try:
        found = read_json(text, ApiRelease, "the API's answer")
    except ForeignJsonError as error:
        raise RequestError(f"{api} has no release {version}: {error.reason}") from error
    assets = {asset.name: asset for asset in found.assets}
    builds = []
    for name, asset in sorted(assets.items()):
        kind = _kind_of(name, found.tag_name)
        if kind is None:
            continue
        system, machine, backend = kind
        wanted = [asset]
        if backend.startswith("cuda"):
            runtime = assets.get(f"cudart-{name}")
            if runtime is None:
                raise RequestError(f"the release has no CUDA libraries for {name}")
            wanted.append(runtime)
        files = tuple([await _file(one, proxies) for one in wanted])
        builds.append(Build(system, machine, backend, files))
    if not builds:
        raise RequestError(f"the release {version} has no archive for Linux or macOS")
    folder = next(iter(assets.values())).browser_download_url.rsplit("/", 1)[0]
    return Release(found.tag_name, f"{folder}/", tuple(builds))


def _kind_of(name: str, version: str) -> tuple[str, str, str] | None:
    found = re.fullmatch(rf"llama-{re.escape(version)}-bin-(.+)\.tar\.gz", name)
    if found is None:
        return None
    return next((kind for pattern, kind in _KINDS if pattern.fullmatch(found[1])), None)


async def _file(asset: Asset, proxies: ProxySettings) -> ArchiveFile:
    """Download an archive and hash it."""
    print(f"hashing {asset.name} ({asset.size >> 20} MiB)", file=sys.stderr, flush=True)
    transfer = Transfer(
        asset.browser_download_url, None, proxies=proxies, server="the release server"
    )
    digest, size = hashlib.sha256(), 0
    async with transfer.open(asset.browser_download_url) as body:
        while data := await body.read():
            digest.update(data)
            size += len(data)
            if size > min(asset.size, MAX_ARCHIVE_BYTES):
                raise TransportError(f"{asset.name} has more bytes than the API says")
    if size != asset.size:
        raise TransportError(f"{asset.name} has {size} bytes, not {asset.size}; try again")
    found = digest.hexdigest()
    if asset.digest is not None and asset.digest != f"sha256:{found}":
        raise TransportError(f"{asset.name} has the SHA-256 {found}; the API says {asset.digest}")
    return ArchiveFile(asset.name, size, found)


async def _read(url: str, limit_bytes: int, proxies: ProxySettings) -> bytes:
    transfer = Transfer(url, None, proxies=proxies, server="the API")
    text = b""
    async with transfer.open(url) as body:
        while data := await body.read():
            text += data
            if len(text) > limit_bytes:
                raise RequestError(f"the answer of {url} has more than {limit_bytes} bytes")
    return text


def with_release(manifest: Manifest, release: Release) -> bytes:
    """Return the text of a manifest with this release first, in place of one of its version."""
    others = tuple(one for one in manifest.releases if one.version != release.version)
    text = msgspec.json.encode(Manifest(FORMAT, (release, *others)))
    read_manifest(text, "what was made")  # raises if it could not be read back
    return msgspec.json.format(text, indent=1) + b"\n"


def main() -> None:
    """Print the manifest."""
    parser = argparse.ArgumentParser(prog="make_manifest", description=__doc__.splitlines()[0])
    parser.add_argument("version", metavar="VERSION", help="such as b11429")
    parser.add_argument("--into", metavar="FILE", type=Path, help="keep what this manifest has")
    parser.add_argument("--api", metavar="URL", default=API, help=f"default: {API}")
    parsed = parser.parse_args()
    try:
        manifest = Manifest(FORMAT, ())
        if parsed.into is not None:
            manifest = read_manifest_file(parsed.into)
        release = asyncio.run(make_release(parsed.version, parsed.api))
        sys.stdout.buffer.write(with_release(manifest, release))
    except WaiError as error:
        sys.exit(f"make_manifest: {error}")


if __name__ == "__main__":
    main()
