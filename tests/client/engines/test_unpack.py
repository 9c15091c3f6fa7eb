"""An engine's archive, honest or hostile: what lands in the folder, and nothing outside it."""

from __future__ import annotations

import errno
import gzip
import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from wai_node.engines import unpack as unpack_module
from wai_node.engines.unpack import MAX_HEADER_BYTES, unpack
from wai_protocol.errors import RequestError, StoreError

Fill = Callable[[tarfile.TarFile], None]


def add(tar: tarfile.TarFile, name: str, content: bytes = b"x", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(content))


def link(tar: tarfile.TarFile, name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    tar.addfile(member)


def archive(folder: Path, *fills: Fill) -> Path:
    path = folder / "engine.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for fill in fills:
            fill(tar)
    return path


def unpacked(folder: Path, *fills: Fill) -> Path:
    into = folder / "outside" / "into"
    into.mkdir(parents=True)
    unpack(archive(folder, *fills), into)
    return into


def test_files_links_and_their_rights_are_as_a_release_has_them(tmp_path: Path) -> None:
    into = unpacked(
        tmp_path,
        lambda tar: add(tar, "./llama-b1/llama-server", b"server", mode=0o4777),
        lambda tar: add(tar, "./llama-b1/libggml.so.0.1", b"library", mode=0o600),
        lambda tar: link(tar, "./llama-b1/libggml.so.0", "libggml.so.0.1"),
        lambda tar: link(tar, "./llama-b1/libggml.so", "libggml.so.0"),
        lambda tar: link(tar, "./llama-b1/hard", "llama-b1/libggml.so.0.1", tarfile.LNKTYPE),
    )
    assert sorted(entry.name for entry in into.iterdir()) == [
        *("hard", "libggml.so", "libggml.so.0", "libggml.so.0.1", "llama-server")
    ]
    server = into / "llama-server"
    assert server.read_bytes() == b"server"
    assert stat.S_IMODE(server.stat().st_mode) & ~0o755 == 0, "set-uid, or writable for others"
    assert os.access(server, os.X_OK)
    assert (into / "libggml.so").read_bytes() == (into / "hard").read_bytes() == b"library"
    assert not os.access(into / "libggml.so", os.X_OK) or os.geteuid() == 0


@pytest.mark.parametrize(
    "fills",
    [
        [lambda tar: add(tar, "../escaped")],
        [lambda tar: add(tar, "a/../../escaped")],
        [lambda tar: add(tar, "/tmp/escaped-from-an-archive")],
        [lambda tar: add(tar, "a\\..\\escaped")],
        [lambda tar: add(tar, "a\nb")],
        [lambda tar: add(tar, "/".join("a" * 30))],
        [lambda tar: add(tar, "a" * 450)],
        [lambda tar: link(tar, "l", "/etc/passwd")],
        [lambda tar: link(tar, "l", "../..")],
        [lambda tar: link(tar, "a/l", "../../escaped")],
        [lambda tar: link(tar, "l", "../../escaped", tarfile.LNKTYPE)],
        # over another link that is harmless by itself
        [lambda tar: link(tar, "sub/d", ".."), lambda tar: link(tar, "e", "sub/d/..")],
        [lambda tar: link(tar, "l", "."), lambda tar: add(tar, "l/escaped")],
        [lambda tar: add(tar, "l/escaped"), lambda tar: link(tar, "l", "..")],
        [lambda tar: link(tar, "l", "l")],
        # within, until the archive's only folder is left out of the paths
        [lambda tar: add(tar, "into/a"), lambda tar: link(tar, "into/l", "../into2/x")],
        [lambda tar: add(tar, "a"), lambda tar: add(tar, "a")],
        [lambda tar: add(tar, "a"), lambda tar: add(tar, "./a")],
        [lambda tar: add(tar, "device", b"", type=tarfile.CHRTYPE)],
        [lambda tar: add(tar, "pipe", b"", type=tarfile.FIFOTYPE)],
        [lambda tar: add(tar, "a", pax_headers={"comment": "x" * (MAX_HEADER_BYTES + 1)})],
    ],
)
def test_what_would_leave_the_folder_or_is_no_file_is_refused(
    tmp_path: Path, fills: list[Fill]
) -> None:
    with pytest.raises(RequestError, match="the archive is not unpacked"):
        unpacked(tmp_path, *fills)
    assert [entry.name for entry in (tmp_path / "outside").iterdir()] == ["into"]
    assert not (tmp_path / "escaped").exists()
    assert not Path("/tmp/escaped-from-an-archive").exists()


def test_a_bomb_ends_at_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack_module, "MAX_UNPACKED_BYTES", 4 << 20)
    with pytest.raises(RequestError, match="holds more than"):
        unpacked(tmp_path, lambda tar: add(tar, "zeros", bytes(64 << 20)))
    taken = sum(f.stat().st_size for f in (tmp_path / "outside").rglob("*") if f.is_file())
    assert taken <= 4 << 20


def test_too_many_entries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack_module, "MAX_ENTRIES", 10)
    with pytest.raises(RequestError, match="more than 10 entries"):
        unpacked(tmp_path, *[lambda tar, n=n: add(tar, f"f{n}") for n in range(11)])


@pytest.mark.parametrize("spoil", ["cut", "noise", "plain", "inner cut"])
def test_an_archive_that_is_none_is_refused(tmp_path: Path, spoil: str) -> None:
    path = archive(tmp_path, lambda tar: add(tar, "a/b", os.urandom(100_000)))
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "noise": b"\x1f\x8b\x08" + os.urandom(1000),
            "plain": b"no archive",
            "inner cut": gzip.compress(gzip.decompress(whole)[:50_000]),
        }[spoil]
    )
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(RequestError, match="the archive is not unpacked"):
        unpack(path, into)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = archive(tmp_path, lambda tar: add(tar, "a/b"))
    into = tmp_path / "into"
    into.mkdir()
    monkeypatch.setattr("os.open", full)
    with pytest.raises(StoreError, match=r"No space left on device.*; free some space"):
        unpack(path, into)
