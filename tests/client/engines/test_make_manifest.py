"""The maintainers' script that writes a manifest from a release page's files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.fake_releases import FakeReleases, listed
from wai_node.engines.make_manifest import make_release, with_release
from wai_node.engines.manifest import Manifest, choose, read_manifest, shipped
from wai_protocol.errors import RequestError, TransportError

pytestmark = pytest.mark.anyio

NAMES = (
    "llama-b7-bin-ubuntu-x64.tar.gz",
    "llama-b7-bin-ubuntu-vulkan-arm64.tar.gz",
    "llama-b7-bin-ubuntu-rocm-10.0-x64.tar.gz",
    "llama-b7-bin-ubuntu-cuda-13.4-x64.tar.gz",
    "cudart-llama-b7-bin-ubuntu-cuda-13.4-x64.tar.gz",
    "llama-b7-bin-macos-arm64.tar.gz",
    "llama-b7-bin-ubuntu-s390x.tar.gz",
    "llama-b8-bin-ubuntu-x64.tar.gz",
)


@pytest.fixture
def releases(tmp_path: Path) -> Iterator[FakeReleases]:
    folder = tmp_path / "releases"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(name.encode() * 100)
    with FakeReleases(folder) as server:
        yield server


async def test_a_release_is_listed_as_its_files_are(releases: FakeReleases) -> None:
    release = await make_release("b7", f"{releases.url}/api")
    found = {(build.system, build.machine, build.backend): build for build in release.builds}
    assert sorted(found) == [
        ("darwin", "arm64", "metal"),
        ("linux", "aarch64", "vulkan"),
        ("linux", "x86_64", "cpu"),
        ("linux", "x86_64", "cuda13"),
        ("linux", "x86_64", "rocm"),
    ]
    cuda = found["linux", "x86_64", "cuda13"].files
    assert [file.name for file in cuda] == [NAMES[3], NAMES[4]]
    assert cuda[0].sha256 == listed(releases.folder / NAMES[3])["sha256"]
    manifest = read_manifest(with_release(shipped(), release), "made")
    assert [r.version for r in manifest.releases] == [
        "b7",
        *[r.version for r in shipped().releases],
    ]
    assert choose(manifest, "linux", "x86_64", ("cpu",)).url == f"{releases.url}/b7/"
    again = read_manifest(with_release(manifest, release), "made")
    assert again == manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 5}, "more bytes than the API says"),
        ({"size": 1 << 20}, "bytes, not 1048576"),
        ({"digest": "sha256:" + "0" * 64}, "the API says sha256:0000"),
    ],
)
async def test_an_archive_that_is_not_what_the_api_says_is_not_listed(
    releases: FakeReleases, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    told = releases.release("b7")
    told["assets"] = [asset | change for asset in told["assets"]]
    monkeypatch.setattr(releases, "release", lambda version: told)
    with pytest.raises(TransportError, match=message):
        await make_release("b7", f"{releases.url}/api")


async def test_a_release_without_anything_to_use_is_refused(releases: FakeReleases) -> None:
    with pytest.raises(RequestError, match="no archive for Linux or macOS"):
        await make_release("b9", f"{releases.url}/api")
    (releases.folder / NAMES[4]).unlink()
    with pytest.raises(RequestError, match="no CUDA libraries"):
        await make_release("b7", f"{releases.url}/api")


def test_the_command_prints_a_manifest(releases: FakeReleases) -> None:
    command = [sys.executable, "-m", "wai_node.engines.make_manifest", "b7"]
    done = subprocess.run(
        [*command, "--api", f"{releases.url}/api"], capture_output=True, check=True
    )
    assert isinstance(read_manifest(done.stdout, "printed"), Manifest)
    assert b"hashing llama-b7-bin-macos-arm64.tar.gz" in done.stderr
