"""What can be wrong with a model, a server or a disk: each ends `failed` with one sentence and what
to do, nothing of it is left running, and the model beside it is served all the same."""

from __future__ import annotations

import shlex
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import pytest
from msgspec.structs import replace

from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.real import require_real, script
from tests.harness.supervised import ALIAS, REPO, Node, node, servers, settings_in, write_script
from tests.harness.tiny_gguf import TinyModel, tiny_gguf
from wai_node.managed.deployment import State
from wai_node.managed.policy import ManagedSettings
from wai_node.models.download import Download
from wai_protocol.errors import AuthError, Fault, NodeUnavailable, RequestError, StoreError

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

BAD_REPO: Final = "tiny/bad-GGUF"
BAD: Final = f"{BAD_REPO}:F16"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_gguf(tmp_path_factory.mktemp("gguf")).read_bytes()


@pytest.fixture
def hub(model: bytes) -> Iterator[FakeHub]:
    require_real("llama-server")
    repos = {REPO: {"tiny-F16.gguf": model}, BAD_REPO: {"bad-F16.gguf": model}}
    with FakeHub({name: FakeRepo(files) for name, files in repos.items()}) as fake:
        yield fake


def settings(folder: Path, instead: str = "") -> ManagedSettings:
    """A node in `folder`, where the bad model's server is the shell script `instead`."""
    server = folder / "llama-server"
    real = script("llama-server-vulkan")
    write_script(server, f'case "$*" in *"{BAD}"*)\n{instead or ":"}\n;; esac\nexec {real} "$@"\n')
    return settings_in(folder, server=str(server))


@asynccontextmanager
async def serving(hub: FakeHub, how: ManagedSettings) -> AsyncIterator[Node]:
    """A node that serves the good model."""
    async with node(hub, how) as n:
        await n.supervisor.deploy(REPO, 1024, 1)
        await n.until_state(State.READY)
        yield n


async def failed_as(n: Node, *words: str) -> None:
    """The bad model has failed with these words, and the good one is served."""
    failed = await n.until_failed(*words, alias=BAD)
    assert "\n" not in failed.reason
    assert len(failed.reason) < 400
    with pytest.raises(NodeUnavailable, match="not served"):
        await n.complete(BAD)
    assert (await n.complete(ALIAS))["choices"]


REAL: Final = shlex.quote(script("llama-server-vulkan"))


@pytest.mark.parametrize(
    ("instead", "words"),
    [
        ("exit 3", ("status 3", "wai node logs")),
        ("kill -KILL $$", ("SIGKILL", "out of memory", "wai node logs")),
        ("echo 'error while loading shared libraries: libcuda.so.1'; exit 127", ("library",)),
        (
            "echo 'backend.cpp:1283: GGML_ASSERT(*cur_backend_id != -1) failed'; kill -ABRT $$",
            ("llama.cpp has a fault", "another version"),
        ),
        ("exec /nonexistent/llama-server", ("status 127", "wai node logs")),
    ],
    ids=["dies at once", "killed", "library missing", "asserts", "not there"],
)
async def test_a_server_that_does_not_come_up(
    hub: FakeHub, tmp_path: Path, instead: str, words: tuple[str, ...]
) -> None:
    async with serving(hub, settings(tmp_path, instead)) as n:
        await n.supervisor.deploy(BAD_REPO, 1024, 1)
        await failed_as(n, *words)


async def test_a_server_that_hangs_while_loading_is_ended(hub: FakeHub, tmp_path: Path) -> None:
    how = replace(settings(tmp_path, "kill -STOP $$"), load_timeout_s=3.0)
    async with serving(hub, how) as n:
        await n.supervisor.deploy(BAD_REPO, 1024, 1)
        await failed_as(n, "still loading after 3 s", "wai node logs")
        await n.supervisor.remove(BAD)  # else it is tried again
        await n.until(lambda: len(servers()) == 1)


async def test_a_box_without_the_memory_that_it_seemed_to_have(
    hub: FakeHub, tmp_path: Path
) -> None:
    how = settings(tmp_path, f'ulimit -v 400000; exec {REAL} "$@"')  # KiB; its cache takes 256 MiB
    async with serving(hub, how) as n:
        await n.supervisor.deploy(BAD_REPO, 4096, 256)
        await failed_as(n, "not enough memory", "smaller context")


async def test_a_place_to_listen_that_is_really_taken(hub: FakeHub, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        how = settings(tmp_path, f'exec {REAL} "$@" --host 127.0.0.1 --port {port}')
        async with serving(hub, how) as n:
            await n.supervisor.deploy(BAD_REPO, 1024, 1)
            await failed_as(n, "can't listen at a unix socket")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda good: good[: len(good) // 2], ("rejects the file", "choose another")),
        (lambda good: good[:-1], ("rejects the file", "choose another")),
    ],
    ids=["half of its tensors", "one byte short"],
)
async def test_a_file_that_llama_server_rejects(
    hub: FakeHub, tmp_path: Path, model: bytes, content: object, words: tuple[str, ...]
) -> None:
    assert callable(content)
    hub.repos[BAD_REPO] = FakeRepo({"bad-F16.gguf": content(model)})
    async with serving(hub, settings(tmp_path)) as n:
        await n.supervisor.deploy(BAD_REPO, 1024, 1)
        await failed_as(n, *words)


async def test_a_chat_template_that_does_not_parse(hub: FakeHub, tmp_path: Path) -> None:
    broken = tiny_gguf(tmp_path, TinyModel(template="{% for m in messages %}{{ m.content"))
    hub.repos[BAD_REPO] = FakeRepo({"bad-F16.gguf": broken.read_bytes()})
    async with serving(hub, settings(tmp_path)) as n:
        await n.supervisor.deploy(BAD_REPO, 1024, 1)
        await failed_as(n, "chat template can't be read", "another repository")


async def test_a_split_model_that_lacks_a_part_is_refused_and_the_part_is_named(
    hub: FakeHub, tmp_path: Path, model: bytes
) -> None:
    parts = {f"bad-F16-0000{part}-of-00003.gguf": model for part in (1, 3)}
    async with serving(hub, settings(tmp_path)) as n:
        for files in (parts, {**parts, "bad-Q8_0.gguf": model}):
            hub.repos[BAD_REPO] = FakeRepo(files)
            with pytest.raises(RequestError, match="lacks part 2 of 3"):
                await n.supervisor.deploy(BAD, 1024, 1)
        hub.repos[BAD_REPO] = FakeRepo(parts)
        with pytest.raises(RequestError, match="its F16 lacks part 2 of 3"):
            await n.supervisor.deploy(BAD_REPO, 1024, 1)
        assert (await n.complete(ALIAS))["choices"]


async def test_a_download_that_is_not_what_the_hub_says(hub: FakeHub, tmp_path: Path) -> None:
    async with serving(hub, settings(tmp_path)) as n:
        hub.faults.wrong_hash = True
        await n.supervisor.deploy(BAD_REPO, 1024, 1)
        await failed_as(n, "SHA-256", "deploy it again")


async def test_a_hub_that_breaks_off_and_stays_broken(hub: FakeHub, tmp_path: Path) -> None:
    async with serving(hub, settings(tmp_path)) as n:
        hub.faults.cut_after = [1_000_000, 10_000]  # the header's request, then the download's
        hub.faults.statuses = [0, 0, *[503] * 30]
        await n.supervisor.deploy(BAD_REPO, 1024, 1)
        await failed_as(n, "answered 503", "deploy it again to go on")


async def test_a_fault_of_our_own_in_a_download_ends_that_model_alone(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(hub, settings(tmp_path)) as n:

        async def faulty(download: Download) -> list[Path]:
            raise ZeroDivisionError

        monkeypatch.setattr(Download, "run", faulty)
        await n.supervisor.deploy(BAD_REPO, 1024, 1)
        await failed_as(n, "a fault in the node", "log")


@contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator[Path]:
    """A file system of its own, so small that it is soon full."""
    require_real("root")
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Another program takes all that is left."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            return path
    raise AssertionError("the disk has no end")


async def test_a_disk_that_gets_full_half_way_and_room_again(hub: FakeHub, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2000) as disk:
        how = replace(settings(tmp_path), models_folder=disk / "models")
        async with serving(hub, how) as n:
            hub.faults.pause_s = 0.02
            await n.supervisor.deploy(BAD_REPO, 1024, 1)
            await n.until(lambda: n.status(BAD).progress is not None)
            filler = await anyio.to_thread.run_sync(fill, disk)
            await failed_as(n, "No space left on device", "free some space", "is kept")
            hub.faults.pause_s = 0
            filler.unlink()
            await n.supervisor.deploy(BAD_REPO)
            await n.until_state(State.READY, BAD)
            last = hub.requests("storage")[-1]
            assert last.headers["range"] != "bytes=0-", "what had come was not kept"


async def test_a_full_disk_under_the_nodes_own_folder_ends_nothing(
    hub: FakeHub, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 2000) as disk:
        how = replace(settings(tmp_path), folder=disk / "node", models_folder=disk / "models")
        async with serving(hub, how) as n:
            filler = await anyio.to_thread.run_sync(fill, disk)
            [server] = servers()
            server.kill()  # its log, and that of the next one, find no room
            await n.until_state(State.FAILED)
            await n.until_state(State.READY)
            assert (await n.complete(ALIAS))["choices"]
            with pytest.raises(StoreError) as refused:
                await n.supervisor.remove(ALIAS)
            assert refused.value.fault is Fault.STORAGE
            assert (await n.complete(ALIAS))["choices"], "half removed"
            filler.unlink()
            await n.supervisor.remove(ALIAS)
            await n.until(lambda: n.supervisor.deployed() == [])


@pytest.mark.parametrize("publishers", [None, frozenset({"other"})])
async def test_a_node_that_takes_no_orders_asks_the_hub_nothing_for_its_relay(
    hub: FakeHub, tmp_path: Path, publishers: frozenset[str] | None
) -> None:
    how = replace(
        settings(tmp_path, ""),
        allow_deploy=publishers is not None,
        allowed_publishers=publishers,
    )
    async with node(hub, how) as n:
        with pytest.raises(AuthError):
            await n.supervisor.fit(BAD_REPO, 1024, 1)
        if publishers is None:
            with pytest.raises(AuthError, match="no deployments"):
                await n.supervisor.search("tiny")
    assert hub.seen == []
