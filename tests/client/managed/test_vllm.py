"""Models on a vLLM of the node's own: started, checked, changed, and failed as a real one fails."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.fake_vllm import repository, write_vllm
from tests.harness.supervised import KEY, Node, node
from wai_node.managed.deployment import State
from wai_node.managed.options import ServeOptions
from wai_node.managed.policy import ManagedSettings
from wai_node.models.hardware import Gpu, Hardware
from wai_protocol.errors import RequestError, TransportError

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

REPO: Final = "tiny/llama"
VLLM: Final = f"vllm:{REPO}"
GIB: Final = 1 << 30


def card(free_gib: float = 20.0) -> Hardware:
    gpu = Gpu("NVIDIA H", "nvidia", 24 * GIB, int(free_gib * GIB))
    return Hardware((gpu,), 64 * GIB, 32 * GIB, "cpu", 8)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub({REPO: FakeRepo(repository())}) as fake:
        yield fake


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is first on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "bin"


@asynccontextmanager
async def box(
    hub: FakeHub, folder: Path, hardware: Hardware | None = None, **settings: Any
) -> AsyncIterator[Node]:
    how = ManagedSettings(
        folder=folder / "node", models_folder=folder / "models", kept_free_bytes=0, **settings
    )
    async with node(hub, how, hardware=lambda: hardware or card()) as n:
        yield n


def running() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if "--uds" in child.cmdline():
                found.append(child)
    return found


async def test_it_is_downloaded_checked_and_served_with_the_share_that_fits(
    hub: FakeHub, tmp_path: Path, path: Path
) -> None:
    write_vllm(path)
    async with box(hub, tmp_path) as n:
        assert await n.supervisor.deploy(VLLM, 4096, 2) == REPO
        status = await n.until_state(State.READY, REPO)
        assert (status.context_served, status.slots, status.served_by) == (4096, 2, "vllm")
        [process] = running()
        argv = process.cmdline()
        assert argv[argv.index("--max-model-len") + 1] == "4096"
        assert argv[argv.index("--gpu-memory-utilization") + 1] == "0.13"  # 3 GiB of 24
        assert not any(KEY in word for word in argv)
        assert (await n.complete(REPO))["choices"][0]["message"]["content"] == "All is well."
        files = sorted(file.name for file in (tmp_path / "models").rglob("*") if file.is_file())
        assert [name for name in files if not name.endswith(".sha256")] == [
            *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
        ]
        await n.supervisor.edit(REPO, 8192, 4, ServeOptions(cache_type="q8_0"))
        await n.until(lambda: n.status(REPO).context_served == 8192 and len(running()) == 1)
        assert "fp8" in running()[0].cmdline()
        await n.supervisor.remove(REPO)
        await n.until(lambda: not n.supervisor.deployed())
        assert not running()
        assert not list((tmp_path / "models").rglob("*.safetensors"))


async def test_a_restarted_node_serves_it_again(hub: FakeHub, tmp_path: Path, path: Path) -> None:
    write_vllm(path)
    async with box(hub, tmp_path) as n:
        await n.supervisor.deploy(VLLM, 4096, 2)
        await n.until_state(State.READY, REPO)
    assert not running()
    async with box(hub, tmp_path) as n:
        assert (await n.until_state(State.READY, REPO)).served_by == "vllm"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("kv", "too little memory for this context"),
        ("taken", "another process has taken"),
        ("architecture", "does not know the model's architecture"),
        ("cuda", "finds no GPU that it can use"),
    ],
)
async def test_what_it_complains_of_is_said_with_what_to_do(
    hub: FakeHub, tmp_path: Path, path: Path, fault: str, words: str
) -> None:
    write_vllm(path, fault)
    async with box(hub, tmp_path) as n:
        await n.supervisor.deploy(VLLM, 4096, 2)
        assert words in (await n.until_state(State.FAILED, REPO)).reason


@pytest.mark.parametrize(
    ("option", "words"),
    [("--uds", "can't listen at a unix socket"), ("--kv-cache-dtype", "does not know the option")],
)
async def test_an_older_vllm_is_to_be_updated(
    hub: FakeHub, tmp_path: Path, path: Path, option: str, words: str
) -> None:
    write_vllm(path, unknown=option)
    async with box(hub, tmp_path) as n:
        await n.supervisor.deploy(VLLM, 4096, 2)
        assert words in (await n.until_state(State.FAILED, REPO)).reason


async def test_a_node_without_it_or_without_room_says_so_before_it_downloads(
    hub: FakeHub, tmp_path: Path, path: Path
) -> None:
    async with box(hub, tmp_path) as n:
        with pytest.raises(RequestError, match="no `vllm` is on this node's PATH"):
            await n.supervisor.deploy(VLLM)
    write_vllm(path)
    async with box(hub, tmp_path, card(2.0)) as n:
        with pytest.raises(RequestError, match=r"2\.0 GiB are free"):
            await n.supervisor.deploy(VLLM)
    none = Hardware((), 64 * GIB, 32 * GIB, "cpu", 8)
    async with box(hub, tmp_path, none) as n:
        with pytest.raises(RequestError, match="vLLM needs a GPU"):
            await n.supervisor.deploy(VLLM)
        [fit] = await n.supervisor.fit(VLLM)
        assert (fit.quant, fit.fit.verdict.value) == ("safetensors", "no")
    assert not any("model.safetensors" in seen.target for seen in hub.requests("storage"))


async def test_options_that_it_has_not_are_refused(
    hub: FakeHub, tmp_path: Path, path: Path
) -> None:
    write_vllm(path)
    async with box(hub, tmp_path, allow_engine_flags=True) as n:
        for options in (
            ServeOptions(cache_type="q4_0"),
            ServeOptions(gpu_layers=3),
            ServeOptions(flash_attention="on"),
            ServeOptions(engine_flags=("--trust-remote-code",)),
        ):
            with pytest.raises(RequestError, match="of the options vLLM takes"):
                await n.supervisor.deploy(VLLM, options=options)
        with pytest.raises(RequestError, match="of the options vLLM takes"):
            await n.supervisor.deploy(VLLM, mmproj="none")


async def test_a_small_file_that_is_not_what_the_hub_says_is_refused(
    hub: FakeHub, tmp_path: Path, path: Path
) -> None:
    write_vllm(path)
    hub.faults.wrong_blob = True
    async with box(hub, tmp_path) as n:
        with pytest.raises(TransportError, match="arrived damaged"):
            await n.supervisor.deploy(VLLM)


async def test_a_gguf_repository_is_no_model_for_it(
    hub: FakeHub, tmp_path: Path, path: Path
) -> None:
    write_vllm(path)
    hub.repos["tiny/llama-GGUF"] = FakeRepo({"tiny-F16.gguf": b"x"})
    async with box(hub, tmp_path) as n:
        with pytest.raises(RequestError, match="leave --engine vllm out"):
            await n.supervisor.deploy("vllm:tiny/llama-GGUF")
