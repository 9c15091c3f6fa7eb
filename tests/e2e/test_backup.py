"""A relay moves to another machine by its backup, made while it runs; and what is refused."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.harness.cluster import CommandError, cluster, wai

pytestmark = pytest.mark.e2e
NOBODY = 65534


def test_a_relay_comes_back_whole_from_a_backup_that_was_made_while_it_ran(tmp_path: Path) -> None:
    file = tmp_path / "relay.backup"
    with cluster(tmp_path / "old") as old:
        key = old.create_key("kept")
        revoked = old.create_key("revoked")
        old.revoke(revoked)
        certificate, authority = old.ca.read_bytes(), (old.data / "relay-ca.crt").read_bytes()
        authority_key = (old.data / "relay-ca.key").read_bytes()
        wai("backup", file, "--data", old.data)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        with tarfile.open(file) as tar:
            members = tar.getmembers()
        assert {"relay.db", "relay.key"} <= {member.name for member in members}
        assert {(m.mode, m.uid, m.gid, m.uname) for m in members} == {(0o600, 0, 0, "")}
        with pytest.raises(CommandError, match="File exists"):
            wai("backup", file, "--data", old.data)
        with pytest.raises(CommandError, match="another relay"):
            wai("restore", file, "--data", old.data, "--force")
    wai("restore", file, "--data", tmp_path / "new" / "relay")
    with cluster(tmp_path / "new") as new:
        assert new.ca.read_bytes() == certificate
        assert (new.data / "relay-ca.crt").read_bytes() == authority
        assert (new.data / "relay-ca.key").read_bytes() == authority_key
        listed = json.loads(wai("key", "list", "--data", new.data, "--json"))
        assert {one["id"] for one in listed} >= {key.id}
    with pytest.raises(CommandError, match="--force replaces it"):
        wai("restore", file, "--data", tmp_path / "new" / "relay")
    wai("restore", file, "--data", tmp_path / "new" / "relay", "--force")


def test_a_file_that_is_no_backup_changes_nothing(tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    with tarfile.open(evil, "w") as tar:
        member = tarfile.TarInfo("../outside")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    junk = tmp_path / "junk"
    junk.write_bytes(b"no tar at all" * 100)
    for file in (evil, junk, tmp_path / "missing"):
        with pytest.raises(CommandError):
            wai("restore", file, "--data", tmp_path / "data")
    left = {path.name for path in (tmp_path / "data").iterdir()}
    assert left == {"relay.lock"}
    assert not (tmp_path / "outside").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's folder is made by root")
def test_root_restores_a_service_whose_folder_is_another_users(tmp_path: Path) -> None:
    with cluster(tmp_path) as running:
        wai("backup", tmp_path / "backup", "--data", running.data)  # 0600, and root's
    with TemporaryDirectory() as outside:  # tmp_path is for root alone
        data = Path(outside) / "relay"
        data.mkdir(mode=0o700)
        Path(outside).chmod(0o755)
        os.chown(data, NOBODY, NOBODY)
        said = wai("restore", tmp_path / "backup", "--data", data)
        assert "systemctl start wai-relay" in said
        assert {file.stat().st_uid for file in data.iterdir()} == {NOBODY}
        assert (data / "relay.key").read_bytes() == (running.data / "relay.key").read_bytes()
