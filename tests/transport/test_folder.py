"""A data folder is private, even one that existed before."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from wai_protocol.errors import StoreError
from wai_transport.folder import DataFolder


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o711, 0o704])
@pytest.mark.parametrize("name", ["relay.db", "node.key", "membership.json", "lost+found", None])
def test_a_folder_that_others_could_look_into_is_made_private(
    tmp_path: Path, mode: int, name: str | None
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    if name is not None:
        (folder / name).write_text("")
    folder.chmod(mode)
    DataFolder.open(folder)
    assert mode_of(folder) == 0o700


def test_a_folder_of_other_things_keeps_its_mode_and_is_refused(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "passwd").write_text("")
    etc.chmod(0o755)
    with pytest.raises(StoreError, match="chmod 700"):
        DataFolder.open(etc)
    assert mode_of(etc) == 0o755
    etc.chmod(0o700)
    DataFolder.open(etc)


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StoreError, match="can write"):
        DataFolder.open(folder)
    assert mode_of(folder) == 0o777
