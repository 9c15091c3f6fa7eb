"""Engines are installed from a release server, with a real llama-server inside the archive."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import tarfile
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from msgspec.structs import replace

from tests.harness.fake_releases import VERSION, FakeReleases, listed, script_archive
from tests.harness.processes import free_port
from tests.harness.supervised import no_waiting
from wai_node.engines.find import CONFIGURED, ON_PATH, PACKAGE, find_engine
from wai_node.engines.install import fetch_manifest, install_archive, install_build, name_of
from wai_node.engines.manifest import Choice, choose, read_manifest, shipped
from wai_node.engines.probe import devices_of, run_bounded, version_of
from wai_node.engines.store import EngineStore
from wai_node.models.download import WATCHED_TRIES, Progress
from wai_protocol.errors import RequestError, StoreError, TransportError, WaiError

pytestmark = pytest.mark.anyio

NAME = f"{VERSION}-vulkan"


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "node")


def chosen(releases: FakeReleases, archive: str, **changes: Any) -> Choice:
    """The build of an archive, with what a manifest says of it changed."""
    path = releases.folder / archive
    version = archive.split("-")[1]
    manifest = releases.manifest((version, "linux", "x86_64", "vulkan", path))
    manifest["releases"][0]["builds"][0]["files"][0] |= changes
    return choose(
        read_manifest(json.dumps(manifest).encode(), "test"), "linux", "x86_64", ("vulkan",)
    )


async def install(store: EngineStore, choice: Choice, **more: Any) -> list[Progress]:
    told: list[Progress] = []
    await install_build(store, choice, told.append, clock=no_waiting(), kept_free_bytes=0, **more)
    return told


def archive_of(releases: FakeReleases) -> str:
    return next(releases.folder.glob("*.tar.gz")).name


def leftovers(store: EngineStore) -> list[str]:
    """What lies in the folder beside engines and the lock."""
    return sorted(
        path.name
        for path in store.folder.iterdir()
        if path.name not in {"install.lock", "choice.json", *store.names()}
    )


async def test_the_real_engine_is_installed_and_runs(
    store: EngineStore, releases: FakeReleases
) -> None:
    told = await install(store, chosen(releases, archive_of(releases)))
    assert told[-1].done_bytes == told[-1].total_bytes > 1_000_000
    assert store.names() == [NAME]
    program = store.program(NAME)
    assert program is not None
    assert "7e4c0a9" in version_of((str(program),))
    assert devices_of((str(program),)) is not None
    assert (program.parent / "libggml.so").is_symlink()
    assert leftovers(store) == [".downloads"]
    assert list((store.folder / ".downloads").iterdir()) == [], "the archive is kept"
    before = len(releases.seen)
    await install(store, chosen(releases, archive_of(releases)))
    assert len(releases.seen) == before, "what is there was downloaded again"


async def test_a_cut_download_is_continued_where_it_ended(
    store: EngineStore, releases: FakeReleases
) -> None:
    releases.faults.cut_after = [100_000, 0, 5_000_000]
    releases.faults.statuses = [503, 429]
    await install(store, chosen(releases, archive_of(releases)))
    assert store.names() == [NAME]


async def test_a_server_that_only_cuts_is_given_up_and_the_part_kept(
    store: EngineStore, releases: FakeReleases
) -> None:
    choice = chosen(releases, archive_of(releases))
    releases.faults.cut_after = [100_000, *[0] * 50]
    with pytest.raises(TransportError, match="kept, install it again to go on"):
        await install(store, choice)
    assert store.names() == []
    [part] = store.downloads(NAME).glob("*.partial")
    assert part.stat().st_size == 100_000
    releases.faults.cut_after = []
    await install(store, choice)
    assert store.names() == [NAME]


async def test_without_internet_it_is_given_up_soon_and_says_what_to_do(
    store: EngineStore, releases: FakeReleases
) -> None:
    choice = chosen(releases, archive_of(releases))
    away = replace(choice, url=f"http://127.0.0.1:{free_port()}/")
    waits: list[float] = []
    with pytest.raises(TransportError, match="name a mirror by WAI_ENGINE_MIRROR, or install an"):
        await install(
            *(store, away),
            on_wait=lambda reason, wait_s: waits.append(wait_s),
            first_tries=WATCHED_TRIES,
        )
    assert len(waits) == WATCHED_TRIES - 1
    assert store.names() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "arrived damaged.*release server.*was deleted"),
        ({"size_bytes": 1000}, "bytes at the release server, not 1000"),
        ({"name": "llama-b10434-bin-ubuntu-none-x64.tar.gz"}, "the release server has no file"),
    ],
)
async def test_what_is_not_what_the_manifest_says_is_not_installed(
    store: EngineStore, releases: FakeReleases, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(WaiError, match=message):
        await install(store, chosen(releases, archive_of(releases), **changes))
    assert store.names() == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("kill -SEGV $$", "does not run here: it was ended by SIGSEGV"),
        ("kill -ILL $$", "instructions that this processor lacks"),
        (
            'echo "./llama-server: /lib/libc.so.6: version `GLIBC_2.38\' not found" >&2; exit 1',
            "it needs GLIBC_2.38, which is newer than this system's C library",
        ),
        (
            "echo 'error while loading shared libraries: libvulkan.so.1: cannot open'; exit 127",
            "the library libvulkan.so.1 is missing",
        ),
        ("echo 'libgomp.so.1: cannot open' >&2; exit 127", "apt-get install libgomp1"),
        ("yes '\x1b[2J noise'", "does not run here"),
    ],
)
async def test_an_engine_that_does_not_start_is_not_put_in_place_of_one_that_does(
    store: EngineStore, releases: FakeReleases, body: str, message: str
) -> None:
    body = body.replace("`GLIBC", "\\`GLIBC")
    good = script_archive(releases.folder, "b1", "echo 'version: 1 (abc)'\n")
    await install(store, chosen(releases, good.name))
    bad = script_archive(releases.folder, "b1", body + "\n")
    with pytest.raises(TransportError, match=message) as refused:
        await install(store, chosen(releases, bad.name))
    assert "\x1b" not in str(refused.value)
    assert version_of((str(store.program("b1-vulkan")),)) == "1 (abc)"
    assert leftovers(store) == [".downloads"]


async def test_an_engine_for_another_processor_says_so(
    tmp_path: Path, store: EngineStore, releases: FakeReleases
) -> None:
    archive = script_archive(releases.folder, "b1", "")
    program = releases.folder / "script-b1"
    real = store.folder.parent.parent / "x"
    # an ELF file for a machine that there never was
    real.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xff\xfe" + bytes(200))
    program.write_bytes(real.read_bytes())
    program.chmod(0o755)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(program, "llama-b1/llama-server")
    with pytest.raises(TransportError, match="another kind of processor or system"):
        await install(store, chosen(releases, archive.name))
    assert store.names() == []


async def test_a_disk_that_fills_while_unpacking_leaves_nothing_but_the_download(
    store: EngineStore, releases: FakeReleases, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def filling(path: Any, flags: int, *mode: int, **more: Any) -> int:
        if str(path).endswith("libllama.so.0.1.0"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, flags, *mode, **more)

    choice = chosen(releases, archive_of(releases))
    with monkeypatch.context() as patch:
        patch.setattr("os.open", filling)
        with pytest.raises(StoreError, match=r"No space left on device.*free some space"):
            await install(store, choice)
    assert (store.names(), leftovers(store)) == ([], [".downloads"])
    before = len(releases.seen)
    await install(store, choice)
    assert (store.names(), len(releases.seen)) == ([NAME], before), "it was downloaded again"


async def test_a_disk_without_room_for_what_is_unpacked_is_told_before_the_download(
    store: EngineStore, releases: FakeReleases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wai_node.engines.install.KEPT_FREE_BYTES", 1 << 50)
    with pytest.raises(StoreError, match=r"GiB must stay free, but .* free some space there"):
        await install_build(store, chosen(releases, archive_of(releases)))
    assert releases.seen == []


async def test_two_installs_at_once_are_one_and_a_clear_error(
    store: EngineStore, releases: FakeReleases
) -> None:
    choice = chosen(releases, archive_of(releases))
    async with anyio.create_task_group() as tasks:
        started = anyio.Event()

        async def first() -> None:
            await install_build(
                store, choice, lambda progress: started.set(), clock=no_waiting(), kept_free_bytes=0
            )

        tasks.start_soon(first)
        await started.wait()
        with pytest.raises(StoreError, match="another installation of an engine runs"):
            await install(store, choice)
    assert store.names() == [NAME]


def _hold(data: Path, held: Any) -> None:
    store = EngineStore(data)
    with store.installing():
        (store.fresh() / "half").write_text("x")
        held.set()
        held_for_ever = multiprocessing.Event()
        held_for_ever.wait()


def test_an_install_that_was_killed_leaves_neither_lock_nor_folder(
    tmp_path: Path, store: EngineStore
) -> None:
    spawn = multiprocessing.get_context("spawn")
    held = spawn.Event()
    other = spawn.Process(target=_hold, args=(store.folder.parent, held), daemon=True)
    other.start()
    assert held.wait(30)
    with pytest.raises(StoreError, match="another installation"), store.installing():
        pass
    other.kill()
    other.join()
    assert leftovers(store) != []
    with store.installing():
        assert leftovers(store) == []


def test_an_archive_of_ones_own_needs_its_hash(store: EngineStore, packed: Path) -> None:
    for wrong in ("", "abc", "g" * 64):
        with pytest.raises(RequestError, match="64 digits"):
            install_archive(store, packed, wrong)
    with pytest.raises(StoreError, match="its SHA-256 is"):
        install_archive(store, packed, "0" * 64)
    with pytest.raises(RequestError, match="no name for an engine"):
        install_archive(store, packed, "0" * 64, "../../etc")
    assert store.names() == []
    digest = listed(packed)["sha256"]
    engine = install_archive(store, packed, digest.upper())
    assert engine.name == NAME
    assert install_archive(store, packed, digest, "mine").name == "mine"
    assert store.names() == [NAME, "mine"]


async def test_an_archive_without_a_server_is_refused(
    store: EngineStore, releases: FakeReleases, tmp_path: Path
) -> None:
    archive = releases.folder / "llama-b1-bin-ubuntu-x64.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(Path(__file__), "llama-b1/README")
    with pytest.raises(RequestError, match="holds no program llama-server"):
        await install(store, chosen(releases, archive.name))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("llama-b11429-bin-ubuntu-x64.tar.gz", "b11429-cpu"),
        ("llama-b11429-bin-ubuntu-vulkan-arm64.tar.gz", "b11429-vulkan"),
        ("llama-b11429-bin-ubuntu-cuda-13.4-x64.tar.gz", "b11429-cuda-13.4"),
        ("llama-b11429-bin-macos-arm64.tar.gz", "b11429-cpu"),
        ("my-llama.tar.gz", "my-llama"),
    ],
)
def test_an_archive_is_named_after_its_file(file: str, name: str) -> None:
    assert name_of(file) == name


async def test_a_manifest_comes_from_a_file_or_a_server(
    releases: FakeReleases, tmp_path: Path
) -> None:
    archive = releases.folder / archive_of(releases)
    manifest = releases.manifest((VERSION, "linux", "x86_64", "vulkan", archive))
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest))
    assert (await fetch_manifest(str(path))).releases[0].version == VERSION
    (releases.folder / "manifest.json").write_text(json.dumps(manifest))
    assert await fetch_manifest(f"{releases.url}/x/manifest.json") == await fetch_manifest(
        str(path)
    )
    with pytest.raises(RequestError, match="can't be read"):
        await fetch_manifest(str(tmp_path / "none"))
    with pytest.raises(RequestError, match="fetched by https"):
        await fetch_manifest("http://releases.example/manifest.json")
    for broken in ("", "[]", '{"format": 2, "releases": []}', "x" * (2 << 20)):
        path.write_text(broken)
        with pytest.raises(RequestError, match=r"manifest|format"):
            await fetch_manifest(str(path))


@pytest.mark.parametrize(
    "file",
    [
        {"name": "../x.tar.gz"},
        {"name": ".x"},
        {"sha256": ""},
        {"sha256": "A" * 64},
        {"size_bytes": 0},
        {"size_bytes": 1 << 40},
        {"url": "https://x"},
    ],
)
def test_a_manifest_without_true_hashes_and_plain_names_is_refused(
    releases: FakeReleases, file: dict[str, Any]
) -> None:
    archive = releases.folder / archive_of(releases)
    manifest = releases.manifest((VERSION, "linux", "x86_64", "vulkan", archive))
    manifest["releases"][0]["builds"][0]["files"][0] |= file
    with pytest.raises(RequestError, match="is no manifest of engines"):
        read_manifest(json.dumps(manifest).encode(), "test")


def test_the_shipped_manifest_serves_linux_and_macs() -> None:
    manifest = shipped()
    for system, machine, backends in (
        ("linux", "x86_64", ("cuda13", "vulkan", "cpu")),
        ("linux", "x86_64", ("cpu", "vulkan")),
        ("linux", "aarch64", ("cpu", "vulkan")),
        ("darwin", "arm64", ("metal", "cpu")),
        ("darwin", "x86_64", ("cpu",)),
    ):
        choice = choose(manifest, system, machine, backends)
        assert choice.build.backend in backends
        assert choice.url.endswith(f"/{choice.version}/")
        for file in choice.build.files:
            assert choice.version in file.name
    mirrored = choose(manifest, "linux", "x86_64", ("cpu",), mirror="https://mirror/x/")
    assert mirrored.url == f"https://mirror/x/{mirrored.version}/"
    with pytest.raises(RequestError, match="no build for windows on x86_64 with cpu; it has none"):
        choose(manifest, "windows", "x86_64", ("cpu",))
    with pytest.raises(RequestError, match="has no version 'b1'; it has: b"):
        choose(manifest, "linux", "x86_64", ("cpu",), version="b1")
    with pytest.raises(RequestError, match="with rocm; it has only: cpu, cuda13, vulkan"):
        choose(manifest, "linux", "x86_64", ("rocm",))


async def test_the_engine_that_is_configured_chosen_or_found_first_is_used(
    store: EngineStore, releases: FakeReleases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("wai_node.engines.find.HOMEBREW", ("/nonexistent",))
    assert find_engine(store).name == PACKAGE
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TransportError, match="run `wai node engine install` there, or deploy with"):
        find_engine(store)
    for version in ("b9", "b10"):
        archive = script_archive(releases.folder, version, "echo 'version: 1'\n")
        await install(store, chosen(releases, archive.name))
    assert find_engine(store).name == "b10-vulkan", "not the newest"
    store.use("b9-vulkan")
    assert find_engine(store).name == "b9-vulkan"
    path = tmp_path / "bin" / "llama-server"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent))
    assert find_engine(store).name == "b9-vulkan"
    store.use(None)
    assert (find_engine(store).name, find_engine(store).argv) == (ON_PATH, (str(path),))
    assert find_engine(store, str(path)).name == CONFIGURED
    with pytest.raises(TransportError, match="'/no/server' does not exist"):
        find_engine(store, "/no/server")


async def test_an_engine_that_is_used_or_gone_back_to_is_not_removed(
    store: EngineStore, releases: FakeReleases
) -> None:
    for version in ("b1", "b2"):
        archive = script_archive(releases.folder, version, "echo 'version: 1'\n")
        await install(store, chosen(releases, archive.name))
        store.use(f"{version}-vulkan")
    with pytest.raises(RequestError, match="b2-vulkan is used"):
        store.remove("b2-vulkan")
    with pytest.raises(RequestError, match="goes back to if b2-vulkan does not come up"):
        store.remove("b1-vulkan")
    for strange in ("b3-vulkan", "..", "../node", ".downloads", ""):
        with pytest.raises(RequestError, match=r"no engine .* is installed"):
            store.remove(strange)
    store.proven("b1-vulkan")  # an older engine's news
    assert store.choice().on_trial
    store.proven("b2-vulkan")
    store.remove("b1-vulkan")
    assert store.names() == ["b2-vulkan"]
    assert leftovers(store) == [".downloads"]


def test_a_damaged_choice_or_engine_counts_as_none(store: EngineStore) -> None:
    store.use("b1-vulkan")
    (store.folder / "choice.json").write_text('{"used": 5}')
    assert store.choice().used is None
    (store.folder / "b1-vulkan").mkdir()
    for text in ("{}", "no json", '{"version": "1", "program": "x", "sources": []}'):
        (store.folder / "b1-vulkan" / "engine.json").write_text(text)
        assert store.program("b1-vulkan") is None


def test_a_program_that_prints_without_end_or_hangs_is_ended(tmp_path: Path) -> None:
    code, text = run_bounded(("/bin/sh", "-c", "while :; do echo noise; done"))
    assert len(text) <= 512 << 10
    assert code is None or code != 0
    code, text = run_bounded(("/bin/sh", "-c", "sleep 1000 & sleep 1000"), 0.2)
    assert (code, text) == (None, "it was still busy after 0.2 s")
    code, text = run_bounded((str(tmp_path / "none"),))
    assert (code, text) == (None, "No such file or directory")


def test_devices_are_read_as_llama_server_prints_them(tmp_path: Path) -> None:
    script = tmp_path / "server"

    def told(*lines: str) -> object:
        body = "\n".join(f"echo '{line}'" for line in lines)
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
        devices = devices_of((str(script),))
        return devices and [(d.name, d.description, d.total_bytes >> 20) for d in devices]

    assert told("Available devices:", "  (none)") == ()
    assert told("Available devices:") == ()
    assert told("error: unknown argument") is None
    assert told(
        *("load_backend: loaded CUDA backend", "Available devices:"),
        "  CUDA0: NVIDIA GeForce RTX 4090 (24111 MiB, 23700 MiB free)",
        "  Vulkan0: AMD Radeon RX 7900 XTX (RADV NAVI31) (24560 MiB, 24000 MiB free)",
        "  Vulkan1: llvmpipe (LLVM 15.0.6, 256 bits) (31000 MiB, 31000 MiB free)",
        "  BLAS: Accelerate (0 MiB, 0 MiB free)",
    ) == [
        ("CUDA0", "NVIDIA GeForce RTX 4090", 24111),
        ("Vulkan0", "AMD Radeon RX 7900 XTX (RADV NAVI31)", 24560),
    ]
