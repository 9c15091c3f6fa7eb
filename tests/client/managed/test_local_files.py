"""Models in files of the box's owner: only from the folders that are listed, and never deleted."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.harness.fake_hub import FakeHub
from tests.harness.real import require_real
from tests.harness.supervised import node, settings_in
from tests.harness.tiny_encoder import write_encoder
from tests.harness.tiny_gguf import tiny_gguf
from wai_node.managed.deployment import State
from wai_node.managed.policy import ManagedSettings
from wai_node.models.local_files import find_local
from wai_protocol.errors import AuthError, Fault, RequestError, WaiError

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

ALIAS = "local/my-model-F16"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A listed folder with a model, and things beside it that are nobody's business."""
    folder = tmp_path / "gguf"
    (folder / "deep").mkdir(parents=True)
    model = tiny_gguf(tmp_path / "made")
    (folder / "my model-F16.gguf").write_bytes(model.read_bytes())
    (folder / "deep" / "other.gguf").write_bytes(model.read_bytes())
    (folder / "notes.txt").write_text("x")
    (tmp_path / "secret.gguf").write_bytes(model.read_bytes())
    (folder / "link.gguf").symlink_to(tmp_path / "secret.gguf")
    (folder / "fifo.gguf").symlink_to("/dev/zero")
    (folder / "big-00001-of-00003.gguf").write_bytes(b"1")
    (folder / "big-00002-of-00003.gguf").write_bytes(b"22")
    return folder


@pytest.fixture
def settings(tmp_path: Path, files: Path) -> ManagedSettings:
    return settings_in(tmp_path, file_folders=(tmp_path / "nowhere", files))


async def test_a_file_is_served_kept_and_comes_back_without_the_hub(
    settings: ManagedSettings, files: Path
) -> None:
    require_real("llama-server")
    with FakeHub({}) as hub:
        async with node(hub, settings) as n:
            [fitted] = await n.supervisor.fit("./my model-F16.gguf", 512, 1)
            assert (fitted.quant, fitted.fit.verdict.value) == ("my-model-F16", "cpu")
            assert await n.supervisor.deploy("./my model-F16.gguf", 512, 1) == ALIAS
            status = await n.until_state(State.READY, ALIAS)
            assert status.size_bytes == (files / "my model-F16.gguf").stat().st_size
            assert (await n.complete(ALIAS))["choices"]
            await n.supervisor.edit(ALIAS, 1024)
            await n.until(lambda: n.status(ALIAS).context_served == 1024)
        async with node(hub, settings) as n:
            await n.until_state(State.READY, ALIAS)
            await n.supervisor.remove(ALIAS)
            await n.until(lambda: n.supervisor.deployed() == [])
        assert (files / "my model-F16.gguf").is_file(), "the owner's file was deleted"
        assert not settings.models_folder.exists()
        assert list((settings.folder / "logs").iterdir()) == []
        assert hub.seen == []


async def test_a_file_that_was_replaced_or_is_no_longer_allowed_is_told(
    settings: ManagedSettings, files: Path, tmp_path: Path
) -> None:
    require_real("llama-server")
    with FakeHub({}) as hub:
        async with node(hub, settings) as n:
            await n.supervisor.deploy("./my model-F16.gguf", 512, 1)
            await n.until_state(State.READY, ALIAS)
        async with node(hub, replace(settings, file_folders=(tmp_path / "nowhere",))) as n:
            await n.until_failed("in no folder that this node's owner lists", alias=ALIAS)
        write_encoder(files / "my model-F16.gguf")
        async with node(hub, settings) as n:
            await n.until_failed("was replaced by another file", alias=ALIAS)
            await n.supervisor.deploy("./my model-F16.gguf", 512, 1)
            await n.until_state(State.READY, ALIAS)
            assert n.status(ALIAS).purpose == "embedding"
        (files / "my model-F16.gguf").unlink()
        async with node(hub, settings) as n:
            await n.until_failed("there is no file", alias=ALIAS)


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("./none.gguf", RequestError, "there is no file ./none.gguf on this node, in "),
        ("./notes.txt", RequestError, "is no GGUF file"),
        ("./deep", RequestError, "there is no file"),
        ("./link.gguf", RequestError, "there is no file"),
        ("./fifo.gguf", RequestError, "there is no file"),
        ("./../secret.gguf", RequestError, "there is no file"),
        ("/etc/passwd", AuthError, "in no folder that this node's owner lists"),
        ("./big-00001-of-00003.gguf", RequestError, "big-00003-of-00003.gguf is missing"),
        ("./" + "x" * 400, RequestError, "is no path of a file"),
        ("./a\nb.gguf", RequestError, "is no path of a file"),
    ],
)
def test_what_is_not_in_a_listed_folder_is_not_served(
    settings: ManagedSettings, reference: str, error: type[WaiError], message: str
) -> None:
    with pytest.raises(error, match=message):
        find_local(settings.file_folders, reference)


def test_a_link_inside_absolute_paths_and_split_files_are_found(
    settings: ManagedSettings, files: Path
) -> None:
    (files / "near.gguf").symlink_to("deep/other.gguf")
    for reference in ("./near.gguf", "./deep/other.gguf", str(files / "deep" / "other.gguf")):
        found = find_local(settings.file_folders, reference)
        assert (found.name, found.folder) == ("local/other", (files / "deep").resolve())
    (files / "big-00003-of-00003.gguf").write_bytes(b"333")
    found = find_local(settings.file_folders, "./big-00001-of-00003.gguf")
    assert [file.size_bytes for file in found.quantisations[0].files] == [1, 2, 3]


async def test_without_listed_folders_no_file_is_served(settings: ManagedSettings) -> None:
    with FakeHub({}) as hub:
        async with node(hub, replace(settings, file_folders=())) as n:
            with pytest.raises(AuthError, match="serves no files of its own") as refused:
                await n.supervisor.deploy("./my model-F16.gguf")
            assert refused.value.fault is Fault.FORBIDDEN
