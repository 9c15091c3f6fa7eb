"""Which GPUs a deployment goes to, and what of it stays in RAM, with a real llama-server.

Its devices are llama.cpp's own RPC servers; one of them serves one llama-server at a time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from msgspec.structs import replace

from tests.client.managed.test_options import call, value_of
from tests.client.models.test_fit_against_llama_server import header_of
from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.real import require_real, script
from tests.harness.rpc_devices import rpc_devices, rpc_server
from tests.harness.supervised import ALIAS, REPO, Node, node, servers, settings_in, write_script
from tests.harness.tiny_families import Shape, write_family
from wai_node.managed.deployment import State
from wai_node.managed.wanted import Wanted
from wai_node.models.fit import GPU_HIGH_BYTES, fit
from wai_node.models.hardware import Gpu, Hardware
from wai_node.models.layout import layout_of
from wai_node.models.load import Load
from wai_node.models.shape import shape_from_metadata
from wai_protocol.errors import RequestError

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

GIB: Final = 1 << 30
LOAD: Final = Load(512, 1)
FULL: Final = Hardware((), 64 * GIB, 32 * GIB, "cpu", 8)


@dataclass(slots=True)
class Box:
    """A machine with two GPUs; so many bytes are free on each while no model is loaded."""

    free: tuple[int, int]
    lost: bool = False
    names: tuple[str, ...] = ("", "")

    def hardware(self) -> Hardware:
        total = psutil.virtual_memory().total
        free = (0, 0) if servers() else self.free
        cards = tuple(
            Gpu(self.names[number], "nvidia", total, GPU_HIGH_BYTES + size, number)
            for number, size in enumerate(free)
        )
        return replace(FULL, gpus=cards[:1] if self.lost else cards)


@pytest.fixture(autouse=True)
def real() -> None:
    require_real("llama-server")
    if rpc_server() is None:
        pytest.skip("the package of llama-server has no ggml-rpc-server")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("moe") / "m.gguf", "qwen3moe", Shape())


@pytest.fixture
def hub(model: Path) -> Iterator[FakeHub]:
    with FakeHub({REPO: FakeRepo({"tiny-F16.gguf": model.read_bytes()})}) as fake:
        yield fake


def whole_bytes(model: Path) -> int:
    """What the whole model takes of one GPU."""
    header = header_of(model)
    shape, weights = shape_from_metadata(header.metadata), header.tensor_bytes or 0
    layout = layout_of(header.tensors, shape.blocks)
    large = replace(FULL, gpus=(Gpu("g", "nvidia", 64 * GIB, 64 * GIB),))
    return fit(shape, weights, LOAD, large, layout=layout).space.on(0)


@asynccontextmanager
async def box_node(hub: FakeHub, place: Path, box: Box) -> AsyncIterator[Node]:
    with rpc_devices(2) as devices:
        box.names = tuple(devices.split(","))
        engine = place / "llama-server"
        write_script(engine, f'exec {script("llama-server-vulkan")} --rpc {devices} "$@"')
        settings = settings_in(place, server=str(engine))
        async with node(hub, settings, hardware=box.hardware, engine=engine_of(settings, box)) as n:
            yield n


def engine_of(settings: Any, box: Box) -> Any:
    from wai_node.managed.engine import NodeEngine

    return NodeEngine(settings, hardware=box.hardware)


async def deployed(n: Node, **options: Any) -> None:
    await call(n, "model.deploy", model=REPO, context=512, slots=1, load="on_demand", **options)
    await n.until_state(State.READY)
    assert (await n.complete())["choices"]


async def edited(n: Node, **options: Any) -> None:
    """Change it while it is not loaded: a device can't serve the server of before beside."""
    await call(n, "model.unload", model=ALIAS)
    await call(n, "model.edit", model=ALIAS, **options)
    await call(n, "model.load", model=ALIAS)
    await n.until_state(State.READY)
    assert n.status().swap_error == ""
    assert (await n.complete())["choices"]


async def test_the_experts_of_the_fewest_layers_stay_in_ram_if_all_do_not_fit(
    hub: FakeHub, model: Path, tmp_path: Path
) -> None:
    box = Box((whole_bytes(model) - (6 << 20), 0))
    async with box_node(hub, tmp_path, box) as n:
        [found] = await call(n, "model.fit", model=REPO, context=512, slots=1)
        assert (found["verdict"], found["gpu_layers"]) == ("partial", 7)
        assert 0 < found["cpu_moe"] < 6
        await deployed(n)
        assert (value_of("--gpu-layers"), value_of("--device")) == ("7", "RPC0")
        assert 0 < int(value_of("--n-cpu-moe") or 0) < 6
        await edited(n, cpu_moe=5)
        assert value_of("--n-cpu-moe") == "5"
        with pytest.raises(RequestError, match="does not fit"):
            await call(n, "model.edit", model=ALIAS, cpu_moe=0, gpu_layers=7)
        await edited(n, cpu_moe=None)
        assert 0 < int(value_of("--n-cpu-moe") or 0) < 6


async def test_a_model_is_on_the_fewest_gpus_that_hold_it_and_on_those_that_are_named(
    hub: FakeHub, model: Path, tmp_path: Path
) -> None:
    whole = whole_bytes(model)
    box = Box((whole, whole + 1))
    async with box_node(hub, tmp_path, box) as n:
        await deployed(n)
        assert (value_of("--device"), value_of("--tensor-split")) == ("RPC1", None)
        await edited(n, gpus=[0])
        assert value_of("--device") == "RPC0"
        with pytest.raises(RequestError, match="no GPU 2 that its engine can use; it has 0"):
            await call(n, "model.edit", model=ALIAS, gpus=[2])


async def test_a_model_is_placed_anew_at_each_load_by_what_is_free_then(
    hub: FakeHub, model: Path, tmp_path: Path
) -> None:
    whole = whole_bytes(model)
    box = Box((whole, 0))
    async with box_node(hub, tmp_path, box) as n:
        await deployed(n)
        assert value_of("--device") == "RPC0"
        for box.free, device in (((0, whole), "RPC1"), ((whole, 0), "RPC0")):
            await call(n, "model.unload", model=ALIAS)
            await n.until_state(State.ASLEEP)
            assert (await n.complete())["choices"]
            assert value_of("--device") == device
        stored = Wanted(n.supervisor.settings.folder)
        stored.load()
        placement = stored.models[ALIAS].placement
        assert placement is not None
        assert placement.shares[0].device == value_of("--device")


async def test_a_model_that_no_gpu_holds_is_spread_over_two(
    hub: FakeHub, model: Path, tmp_path: Path
) -> None:
    free = whole_bytes(model) - (1 << 20)
    async with box_node(hub, tmp_path, Box((free, free))) as n:
        await deployed(n, cpu_moe=0)
        assert value_of("--device") == "RPC0,RPC1"
        first, second = map(int, (value_of("--tensor-split") or "").split(","))
        assert first + second == 7


async def test_a_gpu_that_vanishes_is_named_and_what_is_served_goes_on(
    hub: FakeHub, model: Path, tmp_path: Path
) -> None:
    box = Box((whole_bytes(model), 0))
    async with box_node(hub, tmp_path, box) as n:
        await deployed(n)
        box.lost = True
        with pytest.raises(RequestError, match="no GPU 1 that its engine can use"):
            await call(n, "model.edit", model=ALIAS, gpus=[1])
        assert (await n.complete())["choices"]


async def test_a_model_without_experts_has_none_to_keep_in_ram(
    hub: FakeHub, tmp_path: Path
) -> None:
    plain = write_family(tmp_path / "llama.gguf", "llama", Shape()).read_bytes()
    hub.repos[REPO] = FakeRepo({"tiny-F16.gguf": plain})
    async with box_node(hub, tmp_path, Box((GIB, GIB))) as n:
        with pytest.raises(RequestError, match="has no experts"):
            await call(n, "model.deploy", model=REPO, cpu_moe=3)
        with pytest.raises(RequestError, match="each once"):
            await call(n, "model.deploy", model=REPO, gpus=[0, 0])


async def test_a_model_is_loaded_and_unloaded_when_an_admin_says_so(
    hub: FakeHub, tmp_path: Path
) -> None:
    settings = settings_in(tmp_path)
    async with node(hub, settings, hardware=lambda: FULL) as n:
        await deployed(n)
        await call(n, "model.edit", model=ALIAS, load="keep_loaded")
        with pytest.raises(RequestError, match="kept loaded; `wai model edit --load on-demand`"):
            await call(n, "model.unload", model=ALIAS)
        await call(n, "model.edit", model=ALIAS, load="on_demand")
        async with n.supervisor.lease(ALIAS):
            with pytest.raises(RequestError, match="has requests in progress"):
                await call(n, "model.unload", model=ALIAS)
        await call(n, "model.unload", model=ALIAS)
        await n.until_state(State.ASLEEP)
        await n.until(lambda: not servers())
        await call(n, "model.unload", model=ALIAS)
        await call(n, "model.load", model=ALIAS)
        await n.until_state(State.READY)
        await call(n, "model.load", model=ALIAS)
        assert (await n.complete())["choices"]
