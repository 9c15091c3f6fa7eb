"""The real engine as an archive, packed once, and a release server for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.fake_releases import FakeReleases, real_archive
from tests.harness.real import require_real


@pytest.fixture(scope="session")
def packed(shared_folder: Path) -> Path:
    require_real("llama-server")
    return real_archive(shared_folder)


@pytest.fixture
def releases(tmp_path: Path, packed: Path) -> Iterator[FakeReleases]:
    folder = tmp_path / "releases"
    folder.mkdir()
    (folder / packed.name).hardlink_to(packed)
    with FakeReleases(folder) as server:
        yield server
