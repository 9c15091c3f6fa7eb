"""LoRA adapters: added to a model's weights, or refused before anything is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.real import require_real
from tests.harness.supervised import ALIAS, REPO, node, servers
from tests.harness.tiny_gguf import TinyModel, tiny_gguf
from tests.harness.tiny_lora import write_lora
from wai_node.managed.deployment import State
from wai_node.managed.policy import ManagedSettings
from wai_protocol.errors import AuthError, RequestError

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(100)]

ADAPTER: Final = "tiny/adapter-GGUF"
MODEL: Final = TinyModel()


@pytest.fixture
def hub(tmp_path: Path, model_folder: Path) -> Iterator[FakeHub]:
    require_real("llama-server")
    fitting = write_lora(tmp_path / "fitting-F32.gguf", width=MODEL.width)
    files = {"adapter-F32.gguf": fitting.read_bytes()}
    model = tiny_gguf(model_folder, MODEL).read_bytes()
    with FakeHub({REPO: FakeRepo({"tiny-F16.gguf": model}), ADAPTER: FakeRepo(files)}) as fake:
        yield fake


async def test_an_adapter_is_downloaded_added_and_deleted_with_its_model(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    async with node(hub, settings) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)
        plain = (await n.complete(tokens=12))["choices"][0]["text"]
        await n.supervisor.remove(ALIAS)
        await n.until(lambda: not n.supervisor.deployed())
        await n.supervisor.deploy(REPO, 1024, 1, lora=ADAPTER)
        status = await n.until_state(State.READY)
        assert status.lora == f"{ADAPTER}/adapter-F32.gguf"
        [server] = servers()
        argv = server.cmdline()
        assert argv[argv.index("--lora") + 1].endswith("/lora/adapter-F32.gguf")
        adapted = (await n.complete(tokens=12))["choices"][0]["text"]
        assert adapted != plain
        await n.until(lambda: n.status().seen_bytes is not None)
        assert n.status().seen_bytes == pytest.approx(n.status().estimated_bytes, rel=0.1)
        with pytest.raises(RequestError, match="remove it, and deploy it again"):
            await n.supervisor.deploy(REPO, lora=ADAPTER)
    async with node(hub, settings) as n:  # it is remembered
        assert (await n.until_state(State.READY)).lora
        await n.supervisor.remove(ALIAS)
        await n.until(lambda: not n.supervisor.deployed())
        assert not list(settings.models_folder.rglob("*.gguf"))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"width": MODEL.width * 2}, "it adapts a width of"),
        ({"width": MODEL.width, "layers": 99}, "it adapts layer"),
        ({"width": MODEL.width, "architecture": "qwen2"}, "it adapts 'qwen2'"),
        ({"width": MODEL.width, "kind": "model"}, "is no LoRA adapter"),
    ],
)
async def test_an_adapter_of_another_base_model_is_refused_before_a_download(
    hub: FakeHub, settings: ManagedSettings, tmp_path: Path, made: dict[str, Any], words: str
) -> None:
    wrong = write_lora(tmp_path / "wrong.gguf", **made)
    hub.repos[ADAPTER] = FakeRepo({"adapter-F32.gguf": wrong.read_bytes()})
    async with node(hub, settings) as n:
        with pytest.raises(RequestError, match=words):
            await n.supervisor.deploy(REPO, 1024, 1, lora=ADAPTER)
        with pytest.raises(RequestError, match="is no LoRA adapter"):
            await n.supervisor.deploy(REPO, 1024, 1, lora=REPO)
        assert not n.supervisor.deployed()
    assert not settings.models_folder.exists()


async def test_an_adapter_in_a_folder_of_the_owners_is_used_and_stays(
    hub: FakeHub, settings: ManagedSettings, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    file = write_lora(mine / "my-lora.gguf", width=MODEL.width)
    async with node(hub, settings) as n:
        with pytest.raises(AuthError, match="serves no files of its own"):
            await n.supervisor.deploy(REPO, 1024, 1, lora="./my-lora.gguf")
    async with node(hub, replace(settings, file_folders=(mine,))) as n:
        await n.supervisor.deploy(REPO, 1024, 1, lora="./my-lora.gguf")
        await n.until_state(State.READY)
        await n.supervisor.remove(ALIAS)
        await n.until(lambda: not n.supervisor.deployed())
    assert file.is_file()
