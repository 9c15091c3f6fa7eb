"""The engine of a node's models: got for a deployment, swapped under load, and taken back."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import psutil
import pytest
from msgspec.structs import replace

from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.fake_releases import FakeReleases, listed, real_archive, script_archive
from tests.harness.real import require_real, script
from tests.harness.supervised import ALIAS, REPO, Node, no_waiting, node, servers
from tests.harness.tiny_gguf import tiny_gguf
from wai_node.engines.fitting import Machine, backends_for, gpu_advice
from wai_node.engines.install import install_archive
from wai_node.engines.store import EngineStore
from wai_node.managed.deployment import State
from wai_node.managed.engine import EngineState, NodeEngine
from wai_node.managed.policy import ManagedSettings
from wai_node.models.hardware import Gpu, Hardware
from wai_protocol.errors import Fault, RequestError

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

CPU = Machine("linux", "x86_64")
NVIDIA = Machine("linux", "x86_64", frozenset({"nvidia"}), cuda=12)
RAM = Hardware((), 1 << 35, 1 << 35, "cpu", 8)
CARD = replace(RAM, gpus=(Gpu("RTX 4090", "nvidia", 24 << 30, 20 << 30),))


@pytest.fixture(scope="module")
def packed(shared_folder: Path) -> Path:
    require_real("llama-server")
    return real_archive(shared_folder, backend="cpu")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    model = tiny_gguf(tmp_path / "gguf").read_bytes()
    with FakeHub({REPO: FakeRepo({"tiny-F16.gguf": model})}) as fake:
        yield fake


@pytest.fixture
def releases(tmp_path: Path, packed: Path) -> Iterator[FakeReleases]:
    folder = tmp_path / "releases"
    folder.mkdir()
    (folder / packed.name).hardlink_to(packed)
    with FakeReleases(folder) as server:
        yield server


@pytest.fixture
def settings(
    tmp_path: Path, releases: FakeReleases, monkeypatch: pytest.MonkeyPatch
) -> ManagedSettings:
    """A node without an engine, and a manifest with the real one."""
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    monkeypatch.setattr("wai_node.engines.find.HOMEBREW", ("/nonexistent",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("wai_node.engines.install.KEPT_FREE_BYTES", 0)
    [archive] = releases.folder.glob("*.tar.gz")
    manifest = tmp_path / "manifest.json"
    manifest.write_text(
        json.dumps(releases.manifest(("b10434", "linux", "x86_64", "cpu", archive)))
    )
    (tmp_path / "node").mkdir(mode=0o700)
    return ManagedSettings(
        folder=tmp_path / "node" / "managed",
        models_folder=tmp_path / "models",
        threads=1,
        kept_free_bytes=0,
        engine_manifest=manifest,
    )


def engine_of(
    settings: ManagedSettings,
    told: list[EngineState] | None = None,
    hardware: Hardware = RAM,
    machine: Machine = CPU,
) -> NodeEngine:
    return NodeEngine(
        settings,
        (told if told is not None else []).append,
        hardware=lambda: hardware,
        machine=lambda hardware: machine,
        clock=no_waiting(),
    )


def store_of(settings: ManagedSettings) -> EngineStore:
    return EngineStore(settings.folder.parent)


def programs() -> list[str]:
    """The programs of the servers that run."""
    found = []
    for process in servers():
        try:
            found.append(process.exe())
        except psutil.Error:
            continue  # it has just ended
    return found


async def engine_in_use(n: Node, name: str) -> None:
    await n.until(lambda: any(f"/{name}/" in path for path in programs()) and len(servers()) == 1)


async def test_a_deployment_brings_the_engine_along_where_it_was_asked_to(
    hub: FakeHub, settings: ManagedSettings, releases: FakeReleases
) -> None:
    told: list[EngineState] = []
    async with node(hub, settings, engine=engine_of(settings, told)) as n:
        assert told[-1].detail()["name"] is None
        assert told[-1].offer.startswith("llama.cpp b10434 for the CPU, ")
        with pytest.raises(RequestError, match=r"--install-engine`.*b10434 for the CPU") as refused:
            await n.supervisor.deploy(REPO, 1024, 1)
        assert refused.value.fault is Fault.NOT_FOUND
        assert (n.supervisor.deployed(), releases.seen) == ([], [])
        await n.supervisor.deploy(REPO, 1024, 1, install_engine=True)
        await n.until_state(State.READY)
        states = {event.status.state for event in n.events}
        assert State.FAILED not in states
        assert (await n.complete())["choices"]
        await engine_in_use(n, "b10434-cpu")
        assert told[-1].detail()["name"] == "b10434-cpu"
        await n.until(lambda: not store_of(settings).choice().on_trial)


async def test_an_engine_is_installed_by_itself_or_never_as_the_owner_says(
    hub: FakeHub, settings: ManagedSettings
) -> None:
    never = replace(settings, engine="never")
    async with node(hub, never, engine=engine_of(never)) as n:
        with pytest.raises(RequestError, match="owner lets nobody install one"):
            await n.supervisor.deploy(REPO, 1024, 1, install_engine=True)
    auto = replace(settings, engine="auto")
    async with node(hub, auto, engine=engine_of(auto)) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)


async def test_a_node_killed_while_it_gets_its_engine_goes_on_with_that(
    hub: FakeHub, settings: ManagedSettings, releases: FakeReleases
) -> None:
    releases.gate = threading.Event()
    async with node(hub, settings, engine=engine_of(settings)) as n:
        await n.supervisor.deploy(REPO, 1024, 1, install_engine=True)
        await n.until(lambda: bool(releases.seen))
    releases.gate.set()
    async with node(hub, settings, engine=engine_of(settings)) as n:
        await n.until_state(State.READY)


async def test_an_engine_that_can_not_be_got_fails_the_deployment_with_the_reason(
    hub: FakeHub, settings: ManagedSettings, releases: FakeReleases
) -> None:
    releases.faults.statuses = [500] * 100
    async with node(hub, settings, engine=engine_of(settings)) as n:
        await n.supervisor.deploy(REPO, 1024, 1, install_engine=True)
        failed = await n.until_failed("the release server answered 500")
        assert failed.given_up
        releases.faults.statuses = []
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)


async def test_an_engine_that_is_installed_heals_what_failed_for_lack_of_one(
    hub: FakeHub, settings: ManagedSettings, packed: Path
) -> None:
    own = replace(settings, server=script("llama-server-vulkan"))
    wanted = settings.folder / "wanted.json"
    async with node(hub, own) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)
        await n.until(lambda: '"proven": null' not in wanted.read_text())
    async with node(hub, settings, engine=engine_of(settings)) as n:
        # the program that served it last is still there, and stands in
        await n.until_state(State.READY)
    kept = json.loads(wanted.read_text())
    kept["models"][0]["engine"] = ["/nonexistent/llama-server"]
    wanted.write_text(json.dumps(kept))
    async with node(hub, settings, engine=engine_of(settings)) as n:
        await n.until_failed("no llama-server is on this node", "wai node engine install")
        await install(settings, packed)
        await n.until_state(State.READY)


async def install(settings: ManagedSettings, archive: Path, name: str | None = None) -> str:
    """What `wai node engine install --archive` does."""
    store, digest = store_of(settings), listed(archive)["sha256"]
    engine = await anyio.to_thread.run_sync(install_archive, store, archive, digest, name)
    store.use(engine.name)
    return engine.name


async def test_another_engine_takes_over_under_load_without_a_failed_request(
    hub: FakeHub, settings: ManagedSettings, packed: Path
) -> None:
    await install(settings, packed, "first")
    async with node(hub, settings, engine=engine_of(settings), hardware=lambda: RAM) as n:
        await n.supervisor.deploy(REPO, 1024, 2)
        await n.until_state(State.READY)
        await engine_in_use(n, "first")
        answered: list[dict[str, Any]] = []
        stop = anyio.Event()

        async def caller() -> None:
            while not stop.is_set():
                answered.append(await n.complete(tokens=24))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(caller)
            await n.until(lambda: len(answered) > 5)
            await install(settings, packed, "second")
            await engine_in_use(n, "second")
            seen = len(answered)
            await n.until(lambda: len(answered) > seen + 5)
            stop.set()
        assert all(a["usage"]["completion_tokens"] == 24 for a in answered)
        assert (n.status().swap_error, n.status().context_served) == ("", 1024)
        await n.until(lambda: not store_of(settings).choice().on_trial)
    async with node(hub, settings, engine=engine_of(settings)) as n:
        await n.until_state(State.READY)
        await engine_in_use(n, "second")


CRASHING = (
    'case "$1" in --version) echo "version: 9 (bad)"; exit;; esac\necho boom\nkill -SEGV $$\n'
)


async def test_an_engine_that_crashes_at_start_is_taken_back_and_requests_go_on(
    hub: FakeHub, settings: ManagedSettings, packed: Path, releases: FakeReleases
) -> None:
    good = await install(settings, packed, "good")
    hub.repos["tiny/second-GGUF"] = hub.repos[REPO]
    async with node(hub, settings, engine=engine_of(settings), hardware=lambda: RAM) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        second = await n.supervisor.deploy("tiny/second-GGUF", 1024, 1)
        await n.until_state(State.READY)
        await n.until_state(State.READY, second)
        await n.until(lambda: not store_of(settings).choice().on_trial)
        before = {process.pid for process in servers()}
        bad = await install(settings, script_archive(releases.folder, "b9", CRASHING))
        await n.until(lambda: store_of(settings).choice().used == good)
        refused = store_of(settings).choice().refused
        assert "was ended by SIGSEGV" in refused[bad]
        [moved] = [s for s in n.supervisor.deployed() if s.swap_error]
        assert "SIGSEGV" in moved.swap_error
        assert "served as before" in moved.swap_error
        for alias in (ALIAS, second):
            assert (await n.complete(alias))["choices"]
        assert {process.pid for process in servers()} == before, "a server was stopped"


async def test_an_engine_chosen_while_the_node_was_away_is_taken_back_too(
    hub: FakeHub, settings: ManagedSettings, packed: Path, releases: FakeReleases
) -> None:
    good = await install(settings, packed, "good")
    async with node(hub, settings, engine=engine_of(settings)) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)
        await n.until(lambda: not store_of(settings).choice().on_trial)
        wanted = settings.folder / "wanted.json"
        await n.until(lambda: '"proven": null' not in wanted.read_text())
    await install(settings, script_archive(releases.folder, "b9", CRASHING))
    async with node(hub, settings, engine=engine_of(settings)) as n:
        await n.until_state(State.READY)
        await engine_in_use(n, "good")
        await n.until(lambda: store_of(settings).choice().used == good)


def gpu_engine(settings: ManagedSettings, releases: FakeReleases, *devices: str) -> None:
    """Install an engine that tells of these devices."""
    told = "".join(f"echo '  {device}';" for device in devices)
    body = f'case "$1" in --list-devices) echo "Available devices:"; {told} exit;; esac\n'
    archive = script_archive(releases.folder, "b8", f"{body}echo 'version: 8 (x)'\n")
    install_archive(store_of(settings), archive, listed(archive)["sha256"], "mine")
    store_of(settings).use("mine")


async def test_an_engine_that_leaves_the_gpu_idle_is_told_loudly_and_fits_in_ram(
    settings: ManagedSettings, releases: FakeReleases, caplog: pytest.LogCaptureFixture
) -> None:
    gpu_engine(settings, releases)
    told: list[EngineState] = []
    engine = engine_of(settings, told, CARD, NVIDIA)
    await engine.look()
    assert "mine can't use this machine's GPU (RTX 4090): models run on the CPU" in told[-1].problem
    assert told[-1].problem in caplog.text
    assert engine.usable(CARD).gpus == ()
    told.clear()
    alone = replace(settings, allow_deploy=False)  # it runs no models, so nothing lies idle
    await engine_of(alone, told, CARD, NVIDIA).look()
    assert told[-1].problem == ""
    gpu_engine(settings, releases, "CUDA0: RTX 4090 (24111 MiB, 23700 MiB free)")
    await engine.look()
    assert (told[-1].problem, told[-1].detail()["devices"]) == ("", ["RTX 4090"])
    [card] = CARD.gpus
    assert engine.usable(CARD) == replace(CARD, gpus=(replace(card, device="CUDA0"),))


@pytest.mark.parametrize(
    ("machine", "backends"),
    [
        (CPU, ("cpu", "vulkan")),
        (NVIDIA, ("cuda12", "cpu", "vulkan")),
        (replace(NVIDIA, cuda=13, vulkan=True), ("cuda13", "cuda12", "vulkan", "cpu")),
        (replace(NVIDIA, cuda=11, vulkan=True), ("vulkan", "cpu")),
        (replace(CPU, vendors=frozenset({"amd"}), rocm=True), ("rocm", "cpu", "vulkan")),
        (replace(CPU, vendors=frozenset({"amd"}), vulkan=True), ("vulkan", "cpu")),
        (replace(CPU, rocm=True, vulkan=True), ("cpu", "vulkan")),
        (Machine("darwin", "arm64", frozenset({"apple"})), ("metal", "cpu")),
        (Machine("darwin", "x86_64"), ("cpu",)),
    ],
)
def test_the_build_follows_what_the_drivers_say(
    machine: Machine, backends: tuple[str, ...]
) -> None:
    assert backends_for(machine) == backends


def test_a_gpu_without_a_vulkan_loader_gets_advice() -> None:
    assert "libvulkan1" in gpu_advice(replace(CPU, vendors=frozenset({"amd"})))
    assert gpu_advice(replace(NVIDIA, cuda=13)) == ""
    assert gpu_advice(replace(NVIDIA, vulkan=True)) == ""
    assert gpu_advice(CPU) == ""
