"""Root does nothing in another user's data folder that this user could not do."""

from __future__ import annotations

import json
import os
import socket
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wai_cli.checks.own_node import own_node
from wai_cli.client.target import local_target
from wai_protocol.errors import StoreError
from wai_relay.access.keys import KeyRing
from wai_relay.backup import back_up, restore
from wai_relay.database import open_database
from wai_relay.identity import announce, load_admin_token, load_relay_key
from wai_transport.folder import DataFolder
from wai_transport.owner import as_owner

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root is lent to nobody")

NOBODY = 65534
SECRET = b"root's own secret"


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder that everybody may pass: tmp_path is for root alone."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
async def data(outside: Path) -> Path:
    """The data folder of a relay that runs as nobody."""
    folder = DataFolder.open(outside / "relay")
    store = open_database(folder)
    await (await KeyRing.load(store)).create("app")
    await store.close()
    load_relay_key(folder)
    load_admin_token(folder)
    announce(folder, "https://127.0.0.1:8443", b"p" * 32)
    for path in (folder.path, *folder.path.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    return folder.path


@pytest.fixture
def secret(outside: Path) -> Path:
    """A file that root alone may read."""
    file = outside / "secret"
    file.write_bytes(SECRET)
    file.chmod(0o600)
    return file


def owners_in(folder: Path) -> set[int]:
    return {path.stat().st_uid for path in folder.iterdir()}


def link(path: Path, secret: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(secret)
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def hard_link(path: Path, secret: Path) -> None:
    path.unlink(missing_ok=True)
    path.hardlink_to(secret)


def fifo(path: Path, secret: Path) -> None:
    del secret
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    os.chown(path, NOBODY, NOBODY)


TRAPS = [link, hard_link, fifo]
Trap = Callable[[Path, Path], None]


@pytest.mark.anyio
async def test_its_relay_is_found_and_its_backup_made_and_restored(
    data: Path, outside: Path, tmp_path: Path
) -> None:
    assert local_target(data).url == "https://127.0.0.1:8443"
    size = back_up(data, tmp_path / "backup")  # where its user has no way
    assert size == (tmp_path / "backup").stat().st_size
    assert (tmp_path / "backup").stat().st_uid == 0
    with tarfile.open(tmp_path / "backup") as tar:
        assert {member.mode for member in tar} == {0o600}
    assert owners_in(data) == {NOBODY}
    (outside / "again").mkdir(mode=0o700)
    os.chown(outside / "again", NOBODY, NOBODY)
    with (tmp_path / "backup").open("rb") as file, as_owner(outside / "again"):
        restore(file, outside / "again", force=False)
    store = open_database(DataFolder(outside / "again"))
    assert len(await (await KeyRing.load(store)).list()) == 1
    await store.close()


@pytest.mark.anyio
@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("name", ["admin.token", "relay.json"])
async def test_no_file_of_roots_is_taken_for_a_token(
    data: Path, secret: Path, trap: Trap, name: str
) -> None:
    trap(data / name, secret)
    with pytest.raises(StoreError) as refused:
        local_target(data)
    assert SECRET.decode() not in str(refused.value)


@pytest.mark.anyio
@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("name", ["relay.db", "relay.db-wal", "relay.key", "relay.crt"])
async def test_no_file_of_roots_gets_into_a_backup(
    data: Path, secret: Path, tmp_path: Path, trap: Trap, name: str
) -> None:
    trap(data / name, secret)
    with pytest.raises(StoreError):
        back_up(data, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


@pytest.mark.anyio
async def test_a_folder_that_is_a_link_is_looked_into_as_its_maker(
    data: Path, outside: Path
) -> None:
    private = outside / "private"
    private.mkdir(mode=0o700)
    (private / "relay.json").write_text('{"url": "https://127.0.0.1:1", "pin": null}')
    (private / "admin.token").write_text("root's own secret")
    (data / "link").symlink_to(private)
    os.chown(data / "link", NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(StoreError, match="cannot be read"):
        local_target(data / "link")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "url", ["http://192.0.2.1:8443", "https://relay.example", "http://0.0.0.0.example", "x", ""]
)
async def test_a_token_goes_to_no_address_that_is_not_this_machines(data: Path, url: str) -> None:
    (data / "relay.json").write_text(json.dumps({"url": url, "pin": None}))
    with pytest.raises(StoreError):
        local_target(data)


@pytest.mark.anyio
@pytest.mark.parametrize("running", [[], 1, {"url": 1, "pin": None}, {"url": "x", "pin": "zz"}])
async def test_a_damaged_relay_json_is_said_to_be_damaged(data: Path, running: object) -> None:
    (data / "relay.json").write_text(json.dumps(running))
    with pytest.raises(StoreError):
        local_target(data)


@pytest.mark.anyio
async def test_a_relay_that_listens_on_an_address_of_this_machine_is_found(data: Path) -> None:
    for host in ("127.0.0.1", "[::1]" if socket.has_dualstack_ipv6() else "127.0.0.2", "localhost"):
        (data / "relay.json").write_text(json.dumps({"url": f"http://{host}:1", "pin": None}))
        assert local_target(data).pin is None


@pytest.mark.parametrize("trap", TRAPS)
def test_no_file_of_roots_is_taken_for_a_membership(
    outside: Path, secret: Path, trap: Trap
) -> None:
    folder = outside / "node"
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    trap(folder / "membership.json", secret)
    finding = own_node(folder)
    assert finding is not None
    assert not finding.ok
    assert SECRET.decode() not in finding.text


def test_root_is_root_again_afterwards(outside: Path) -> None:
    os.chown(outside, NOBODY, NOBODY)
    groups = os.getgroups()
    with as_owner(outside):
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (NOBODY, NOBODY, [])
    assert (os.geteuid(), os.getegid(), os.getgroups()) == (0, 0, groups)
